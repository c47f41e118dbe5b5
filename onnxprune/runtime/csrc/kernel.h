// What all operators do with ONNX Runtime.
#pragma once

#include <exception>
#include <mutex>
#include <string>
#include <vector>

#include "node.h"

namespace onnxprune {

class Kernel {
 public:
  Kernel(const ort::Api* api, const ort::KernelInfo* info, const char* type)
      : api_(api), where_(std::string(type) + " " + node_name(api, info)) {}
  virtual ~Kernel() = default;

  ort::Status* compute(ort::KernelContext* context) {
    return guarded(api_, where_, [&] { run(context); });
  }

 protected:
  virtual void run(ort::KernelContext* context) = 0;

  const ort::Value* input(const ort::KernelContext* context, size_t index) const {
    size_t count = 0;
    check(api_, ort::GetInputCount::of(api_)(context, &count));
    if (index >= count) return nullptr;
    const ort::Value* value = nullptr;
    check(api_, ort::GetInput::of(api_)(context, index, &value));
    return value;
  }

  // Refuses a bias of another shape where it is known before anything is run.
  void check_bias(const ort::KernelInfo* info, size_t index, size_t rows) const {
    const ort::Value* value = constant_input(api_, info, index);
    if (value) check_bias(tensor_of(api_, value), rows);
  }

  const float* bias(const ort::KernelContext* context, size_t index, size_t rows) const {
    const ort::Value* value = input(context, index);
    if (!value) return nullptr;
    check_bias(tensor_of(api_, value), rows);
    return data_of<float>(api_, value);
  }

  const float* residual(const ort::KernelContext* context, size_t index,
                        const std::vector<int64_t>& shape) const {
    const ort::Value* value = input(context, index);
    if (!value) return nullptr;
    const Tensor tensor = tensor_of(api_, value);
    if (tensor.shape != shape) {
      refuse("residual has the shape " + listed(tensor.shape) + "; expected that of the output, " +
             listed(shape));
    }
    return data_of<float>(api_, value);
  }

  float* output(ort::KernelContext* context, const std::vector<int64_t>& shape) const {
    ort::Value* value = nullptr;
    check(api_, ort::GetOutput::of(api_)(context, 0, shape.data(), shape.size(), &value));
    void* data = nullptr;
    check(api_, ort::GetData::of(api_)(value, &data));
    return static_cast<float*>(data);
  }

  // Runs tasks on the session's threads, their preparations first.
  template <class Tasks>
  void spread(const ort::KernelContext* context, const Tasks& tasks) const {
    parallel(context, tasks.preparations(), [&](size_t task) { tasks.prepare(task); });
    parallel(context, tasks.count(), [&](size_t task) { tasks.run(task); });
  }

  // Calls `body` for each number below `count`. What it throws is thrown here.
  template <class Body>
  void parallel(const ort::KernelContext* context, size_t count, const Body& body) const {
    struct Shared {
      const Body& body;
      std::mutex mutex;
      std::exception_ptr error;
    } shared{body, {}, nullptr};
    const auto one = [](void* data, size_t task) {
      auto* own = static_cast<Shared*>(data);
      try {
        own->body(task);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(own->mutex);
        own->error = std::current_exception();
      }
    };
    if (count == 1) {
      one(&shared, 0);
    } else if (count > 1) {
      check(api_, ort::ParallelFor::of(api_)(context, one, count, 0, &shared));
    }
    if (shared.error) std::rethrow_exception(shared.error);
  }

  const ort::Api* api_;
  std::string where_;

 private:
  static void check_bias(const Tensor& bias, size_t rows) {
    if (bias.shape != std::vector<int64_t>{int64_t(rows)}) {
      refuse("bias has the shape " + listed(bias.shape) + "; expected [" + std::to_string(rows) +
             "]");
    }
  }
};

}  // namespace onnxprune
