// Runs a compiled model once with ONNX Runtime's C++ interface:
//
//     g++ -std=c++17 -I ORT/include run_compiled.cpp -L ORT/lib -lonnxruntime -o run_compiled
//     ./run_compiled compiled.onnx ./_kernels.abi3.so
//
// ORT is a folder of ONNX Runtime's release for C and C++. Inputs have to be float32 and are filled
// with 0.5; axes that the model leaves open have size 1. Of each output the shape and the mean
// magnitude of its values are printed.

#include <onnxruntime_cxx_api.h>

#include <cmath>
#include <cstdio>
#include <exception>
#include <numeric>
#include <vector>

namespace {

size_t product(const std::vector<int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), size_t{1},
                         [](size_t product, int64_t size) { return product * size_t(size); });
}

double mean_magnitude(const float* values, size_t count) {
  double sum = 0.0;
  for (size_t i = 0; i < count; ++i) sum += std::fabs(values[i]);
  return sum / static_cast<double>(count);
}

void run(const char* model, const char* library) {
  Ort::Env env;
  Ort::SessionOptions options;
  options.RegisterCustomOpsLibrary(library);
  Ort::Session session(env, model, options);

  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  std::vector<std::vector<float>> values;
  std::vector<Ort::Value> inputs;
  for (size_t i = 0; i < session.GetInputCount(); ++i) {
    auto shape = session.GetInputTypeInfo(i).GetTensorTypeAndShapeInfo().GetShape();
    for (int64_t& size : shape) size = size < 0 ? 1 : size;
    auto& own = values.emplace_back(product(shape), 0.5f);
    inputs.push_back(Ort::Value::CreateTensor<float>(memory, own.data(), own.size(), shape.data(),
                                                     shape.size()));
  }
  Ort::AllocatorWithDefaultOptions allocator;
  std::vector<Ort::AllocatedStringPtr> names;
  std::vector<const char*> in, out;
  for (size_t i = 0; i < session.GetInputCount(); ++i) {
    in.push_back(names.emplace_back(session.GetInputNameAllocated(i, allocator)).get());
  }
  for (size_t i = 0; i < session.GetOutputCount(); ++i) {
    out.push_back(names.emplace_back(session.GetOutputNameAllocated(i, allocator)).get());
  }

  const auto outputs = session.Run(Ort::RunOptions{}, in.data(), inputs.data(), inputs.size(),
                                   out.data(), out.size());
  for (size_t i = 0; i < outputs.size(); ++i) {
    const auto shape = outputs[i].GetTensorTypeAndShapeInfo().GetShape();
    const float* data = outputs[i].GetTensorData<float>();
    std::printf("%s (", out[i]);
    for (size_t axis = 0; axis < shape.size(); ++axis) {
      std::printf(axis ? ", %lld" : "%lld", static_cast<long long>(shape[axis]));
    }
    std::printf("): mean magnitude %.6g\n", mean_magnitude(data, product(shape)));
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) {
    std::fprintf(stderr, "usage: %s MODEL LIBRARY\n", arguments[0]);
    return 2;
  }
  try {
    run(arguments[1], arguments[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
