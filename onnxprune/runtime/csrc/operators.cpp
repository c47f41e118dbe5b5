// The operators for ONNX Runtime; docs/reference/sparse-operators.md says what they compute.
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>

#include "convolution.h"
#include "depthwise.h"
#include "images.h"
#include "kernel.h"
#include "packed.h"
#include "product.h"
#include "sparse_inputs.h"

namespace onnxprune {
namespace {

using namespace ort;

constexpr const char* kDomain = "onnxprune";

enum DepthwiseInput : size_t {
  kDepthwiseWeight = 1,
  kDepthwiseBias,
  kDepthwiseResidual,
  kDepthwiseInputCount
};

enum ExpandedInput : size_t {
  kExpandedTaps = kRowStarts + 1,
  kExpandedBias,
  kExpandedDepthwiseBias,
  kExpandedResidual,
  kExpandedInputCount
};

class ConvolutionKernel : public Kernel {
 public:
  static constexpr const char* kType = "SparseConv";

  ConvolutionKernel(const Api* api, const KernelInfo* info) : Kernel(api, info, kType) {
    const Attributes attributes(api, info);
    const WindowAttributes window(attributes);
    flat_ = window.flat();
    spec_.window = window.spec();
    spec_.channels = attributes.integer("in_channels", 0);
    if (spec_.channels < 1 || spec_.channels > 65536) {
      refuse("in_channels is " + std::to_string(spec_.channels) + "; expected 1 to 65536");
    }
    spec_.activation = attributes.activation(&spec_.alpha, &spec_.beta);
    spec_.x_tiled = attributes.tiled("x_layout");
    spec_.y_tiled = attributes.tiled("y_layout");
    const size_t taps = spec_.window.taps();
    std::vector<float> expanded;
    const SparseMatrix matrix = matrix_of(api, info, spec_.channels * int64_t(taps), expanded);
    weights_ = std::make_unique<PackedWeights>(matrix, taps, spec_.reads_in_place(),
                                               block_of(attributes, matrix), kernels());
    check_bias(info, kBias, matrix.rows);
    product_ = {spec_.channels, spec_.activation, spec_.alpha, spec_.beta};
    stored_in_float32_ = expanded.empty();
  }

 protected:
  void run(KernelContext* context) override {
    const Tensor x = tensor_of(api_, input(context, kX));
    const auto rows = int64_t(weights_->rows());
    const Images images = images_of(x, spec_.window, flat_, spec_.channels, rows);
    ConvolutionCall call{};
    call.batch = images.batch;
    call.height = images.height;
    call.width = images.width;
    call.x = data_of<float>(api_, x.value);
    call.bias = bias(context, kBias, weights_->rows());
    call.residual = residual(context, kResidual, images.output_shape);
    call.y = output(context, images.output_shape);
    if (size_of(images.output_shape) == 0) return;
    if (spec_.window.pointwise() && call.height * call.width == 1 && stored_in_float32_ &&
        call.batch <= kFewTokens) {
      spread(context, ProductTasks(product_, *weights_, kernels(), product_of(context, call)));
    } else {
      spread(context, ConvolutionTasks(spec_, *weights_, kernels(), call));
    }
  }

 private:
  // Images of one pixel are vectors, as in squeeze-and-excitation.
  ProductCall product_of(KernelContext* context, const ConvolutionCall& call) const {
    const SparseMatrix matrix{weights_->rows(), size_t(spec_.channels),
                              data_of<float>(api_, input(context, kValues)),
                              data_of<uint16_t>(api_, input(context, kColumns)),
                              data_of<int32_t>(api_, input(context, kRowStarts))};
    return {call.x, call.bias, call.residual, call.y, call.batch, matrix};
  }

  ConvolutionSpec spec_;
  ProductSpec product_;
  bool flat_ = false, stored_in_float32_ = false;
  std::unique_ptr<PackedWeights> weights_;
};

class DepthwiseKernel : public Kernel {
 public:
  static constexpr const char* kType = "DepthwiseConv";

  DepthwiseKernel(const Api* api, const KernelInfo* info) : Kernel(api, info, kType) {
    const Attributes attributes(api, info);
    const WindowAttributes window(attributes);
    flat_ = window.flat();
    spec_.window = window.spec();
    spec_.activation = attributes.activation(&spec_.alpha, &spec_.beta);
    if (const Value* taps = constant_input(api, info, kDepthwiseWeight)) {
      check_bias(info, kDepthwiseBias, size_t(channels_of(tensor_of(api, taps))));
    }
  }

 protected:
  void run(KernelContext* context) override {
    const Tensor x = tensor_of(api_, input(context, kX));
    const Tensor weight = tensor_of(api_, input(context, kDepthwiseWeight));
    DepthwiseSpec spec = spec_;
    spec.channels = channels_of(weight);
    const Images images = images_of(x, spec.window, flat_, spec.channels, spec.channels);
    DepthwiseCall call{};
    call.batch = images.batch;
    call.height = images.height;
    call.width = images.width;
    call.x = data_of<float>(api_, x.value);
    call.weights = data_of<float>(api_, weight.value);
    call.bias = bias(context, kDepthwiseBias, size_t(spec.channels));
    call.residual = residual(context, kDepthwiseResidual, images.output_shape);
    call.y = output(context, images.output_shape);
    if (size_of(images.output_shape) == 0) return;
    spread(context, DepthwiseTasks(spec, kernels(), call));
  }

 private:
  int64_t channels_of(const Tensor& taps) const {
    const auto count = int64_t(spec_.window.taps());
    if (taps.shape.size() != 2 || taps.shape[1] != count) {
      refuse("taps has the shape " + listed(taps.shape) + "; expected (channels, " +
             std::to_string(count) + ")");
    }
    return taps.shape[0];
  }

  DepthwiseSpec spec_;
  bool flat_ = false;
};

// The two layers that widen an inverted bottleneck and convolve it.
class ExpandedKernel : public Kernel {
 public:
  static constexpr const char* kType = "SparseExpandDepthwise";

  ExpandedKernel(const Api* api, const KernelInfo* info) : Kernel(api, info, kType) {
    const Attributes attributes(api, info);
    const WindowAttributes window(attributes);
    flat_ = window.flat();
    spec_.window = window.spec();
    spec_.activation = attributes.activation(&spec_.alpha, &spec_.beta);
    expansion_.channels = attributes.integer("in_channels", 0);
    if (expansion_.channels < 1 || expansion_.channels > 65536) {
      refuse("in_channels is " + std::to_string(expansion_.channels) + "; expected 1 to 65536");
    }
    expansion_.activation =
        attributes.activation(&expansion_.alpha, &expansion_.beta, "expand_");
    const SparseMatrix matrix = matrix_of(api, info, expansion_.channels, expanded_);
    block_of(attributes, matrix);
    spec_.channels = int64_t(matrix.rows);
    if (const Value* taps = constant_input(api, info, kExpandedTaps)) {
      check_taps(tensor_of(api, taps));
    }
    check_bias(info, kExpandedBias, matrix.rows);
    check_bias(info, kExpandedDepthwiseBias, matrix.rows);
  }

 protected:
  void run(KernelContext* context) override {
    const Tensor x = tensor_of(api_, input(context, kX));
    const Tensor taps = tensor_of(api_, input(context, kExpandedTaps));
    check_taps(taps);
    const Images images =
        images_of(x, spec_.window, flat_, expansion_.channels, spec_.channels);
    const SparseMatrix matrix{size_t(spec_.channels), size_t(expansion_.channels),
                              expanded_.empty() ? data_of<float>(api_, input(context, kValues))
                                                : expanded_.data(),
                              data_of<uint16_t>(api_, input(context, kColumns)),
                              data_of<int32_t>(api_, input(context, kRowStarts))};
    DepthwiseCall call{};
    call.batch = images.batch;
    call.height = images.height;
    call.width = images.width;
    call.weights = data_of<float>(api_, taps.value);
    const auto rows = size_t(spec_.channels);
    const Expansion expansion(expansion_, matrix, kernels(), data_of<float>(api_, x.value),
                              bias(context, kExpandedBias, rows), call.height * call.width);
    call.expansion = &expansion;
    call.bias = bias(context, kExpandedDepthwiseBias, rows);
    call.residual = residual(context, kExpandedResidual, images.output_shape);
    call.y = output(context, images.output_shape);
    if (size_of(images.output_shape) == 0) return;
    spread(context, DepthwiseTasks(spec_, kernels(), call));
  }

 private:
  void check_taps(const Tensor& taps) const {
    const auto count = int64_t(spec_.window.taps());
    if (taps.shape != std::vector<int64_t>{spec_.channels, count}) {
      refuse("taps has the shape " + listed(taps.shape) + "; expected [" +
             std::to_string(spec_.channels) + ", " + std::to_string(count) + "]");
    }
  }

  DepthwiseSpec spec_;
  ExpansionSpec expansion_;
  std::vector<float> expanded_;
  bool flat_ = false;
};

class ProductKernel : public Kernel {
 public:
  static constexpr const char* kType = "SparseMatMul";

  ProductKernel(const Api* api, const KernelInfo* info) : Kernel(api, info, kType) {
    const Attributes attributes(api, info);
    spec_.features = attributes.integer("in_features", 0);
    if (spec_.features < 1 || spec_.features > 65536) {
      refuse("in_features is " + std::to_string(spec_.features) + "; expected 1 to 65536");
    }
    spec_.activation = attributes.activation(&spec_.alpha, &spec_.beta);
    const SparseMatrix matrix = matrix_of(api, info, spec_.features, expanded_);
    weights_ = std::make_unique<PackedWeights>(matrix, 1, true, block_of(attributes, matrix),
                                               kernels());
    check_bias(info, kBias, matrix.rows);
  }

 protected:
  void run(KernelContext* context) override {
    const Tensor x = tensor_of(api_, input(context, kX));
    if (x.shape.empty() || x.shape.back() != spec_.features) {
      refuse("X has the shape " + listed(x.shape) + "; expected " +
             std::to_string(spec_.features) + " features on the last axis");
    }
    std::vector<int64_t> shape = x.shape;
    shape.back() = int64_t(weights_->rows());
    ProductCall call{};
    call.tokens = x.size() / spec_.features;
    call.matrix = {weights_->rows(), size_t(spec_.features),
                   expanded_.empty() ? data_of<float>(api_, input(context, kValues))
                                     : expanded_.data(),
                   data_of<uint16_t>(api_, input(context, kColumns)),
                   data_of<int32_t>(api_, input(context, kRowStarts))};
    call.x = data_of<float>(api_, x.value);
    call.bias = bias(context, kBias, weights_->rows());
    call.residual = residual(context, kResidual, shape);
    call.y = output(context, shape);
    if (size_of(shape) == 0) return;
    spread(context, ProductTasks(spec_, *weights_, kernels(), call));
  }

 private:
  ProductSpec spec_;
  std::vector<float> expanded_;
  std::unique_ptr<PackedWeights> weights_;
};

template <class KernelType>
Status* create(const CustomOp*, const Api* api, const KernelInfo* info, void** kernel) {
  const std::string where = std::string(KernelType::kType) + " " + node_name(api, info);
  return guarded(api, where, [&] { *kernel = static_cast<Kernel*>(new KernelType(api, info)); });
}

// What both kinds of operators have in common. Sessions of older versions read fewer slots.
template <class KernelType>
CustomOp operator_of(uint32_t version) {
  CustomOp op{};
  op.version = version;
  op.get_name = [](const CustomOp*) -> const char* { return KernelType::kType; };
  op.get_execution_provider = [](const CustomOp*) -> const char* { return nullptr; };
  op.get_output_type = [](const CustomOp*, size_t) -> int { return kFloat; };
  op.get_output_count = [](const CustomOp*) -> size_t { return 1; };
  op.destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op.get_output_characteristic = [](const CustomOp*, size_t) -> int { return kRequired; };
  op.get_input_memory = [](const CustomOp*, size_t) -> int { return 0; };
  op.get_variadic_input_arity = [](const CustomOp*) -> int { return 1; };
  op.get_variadic_input_homogeneity = [](const CustomOp*) -> int { return 1; };
  op.get_variadic_output_arity = [](const CustomOp*) -> int { return 1; };
  op.get_variadic_output_homogeneity = [](const CustomOp*) -> int { return 1; };
  op.create_kernel_v2 = create<KernelType>;
  op.compute_v2 = [](void* kernel, KernelContext* context) -> Status* {
    return static_cast<Kernel*>(kernel)->compute(context);
  };
  op.get_start_version = [](const CustomOp*) -> int { return 1; };
  op.get_end_version = [](const CustomOp*) -> int { return INT32_MAX; };
  op.get_may_inplace = [](int**, int**) -> size_t { return 0; };
  op.release_may_inplace = [](int* inputs, int* outputs) {
    delete[] inputs;
    delete[] outputs;
  };
  op.get_alias_map = [](int**, int**) -> size_t { return 0; };
  op.release_alias_map = [](int*, int*) {};
  return op;
}

// Each task of a convolution reads its part of the residual before it writes the same part of the
// output, so both can be one, which saves fetching the output's old content into the cache.
template <int Residual>
size_t over_residual(int** inputs, int** outputs) {
  *inputs = new int[1]{Residual};
  *outputs = new int[1]{0};
  return 1;
}

// Types of weights are checked by `matrix_of`, which names what it expects.
template <class KernelType>
CustomOp sparse_operator(uint32_t version) {
  CustomOp op = operator_of<KernelType>(version);
  op.get_input_type = [](const CustomOp*, size_t index) -> int {
    return index >= kValues && index <= kRowStarts ? kAnyType : kFloat;
  };
  op.get_input_count = [](const CustomOp*) -> size_t { return kInputCount; };
  op.get_input_characteristic = [](const CustomOp*, size_t index) -> int {
    return index >= kBias ? kOptional : kRequired;
  };
  return op;
}

CustomOp depthwise_operator(uint32_t version) {
  CustomOp op = operator_of<DepthwiseKernel>(version);
  op.get_input_type = [](const CustomOp*, size_t) -> int { return kFloat; };
  op.get_input_count = [](const CustomOp*) -> size_t { return kDepthwiseInputCount; };
  op.get_input_characteristic = [](const CustomOp*, size_t index) -> int {
    return index >= kDepthwiseBias ? kOptional : kRequired;
  };
  op.get_may_inplace = over_residual<kDepthwiseResidual>;
  return op;
}

CustomOp expanded_operator(uint32_t version) {
  CustomOp op = operator_of<ExpandedKernel>(version);
  op.get_input_type = [](const CustomOp*, size_t index) -> int {
    return index >= kValues && index <= kRowStarts ? kAnyType : kFloat;
  };
  op.get_input_count = [](const CustomOp*) -> size_t { return kExpandedInputCount; };
  op.get_input_characteristic = [](const CustomOp*, size_t index) -> int {
    return index >= kExpandedBias ? kOptional : kRequired;
  };
  op.get_may_inplace = over_residual<kExpandedResidual>;
  return op;
}

// All operators, for the version of ONNX Runtime that has loaded the library.
struct Operators {
  CustomOp convolution, depthwise, expanded, product;

  explicit Operators(uint32_t version)
      : convolution(sparse_operator<ConvolutionKernel>(version)),
        depthwise(depthwise_operator(version)),
        expanded(expanded_operator(version)),
        product(sparse_operator<ProductKernel>(version)) {
    convolution.get_may_inplace = over_residual<kResidual>;
  }
};

// Whether ONNX Runtime is at least of a minor version. Asking it for a table that it does not have
// would make it print an error.
bool runs(const ApiBase& base, uint32_t minor) {
  const char* version = base.get_version();
  const char* dot = version ? std::strchr(version, '.') : nullptr;
  if (!dot) return false;
  return std::strtol(version, nullptr, 10) > 1 ||
         std::strtol(dot + 1, nullptr, 10) >= long(minor);
}

}  // namespace
}  // namespace onnxprune

#if defined(_WIN32)
#define ONNXPRUNE_EXPORT __declspec(dllexport)
#else
#define ONNXPRUNE_EXPORT __attribute__((visibility("default")))
#endif

extern "C" {

ONNXPRUNE_EXPORT onnxprune::ort::Status* RegisterCustomOps(
    onnxprune::ort::SessionOptions* options, const onnxprune::ort::ApiBase* base) {
  using namespace onnxprune;
  const ort::Api* api = base->get_api(ort::kApiVersion);
  if (!api) return nullptr;  // older than 1.17, which ONNX Runtime has said
  return guarded(api, "registration", [&] {
    // A domain holds no more than pointers, and sessions may use it until the process ends.
    static std::mutex mutex;
    static ort::OpDomain* domain = nullptr;
    const std::lock_guard<std::mutex> lock(mutex);
    if (!domain) {
      static const Operators operators(
          runs(*base, ort::kInplaceVersion) ? ort::kInplaceVersion : ort::kApiVersion);
      ort::OpDomain* made = nullptr;
      check(api, ort::CreateDomain::of(api)(kDomain, &made));
      check(api, ort::AddToDomain::of(api)(made, &operators.convolution));
      check(api, ort::AddToDomain::of(api)(made, &operators.depthwise));
      check(api, ort::AddToDomain::of(api)(made, &operators.expanded));
      check(api, ort::AddToDomain::of(api)(made, &operators.product));
      domain = made;
    }
    check(api, ort::AddDomain::of(api)(options, domain));
  });
}

// The name of the instruction set in use, for diagnosis.
ONNXPRUNE_EXPORT const char* OnnxpruneKernels() { return onnxprune::kernels().name; }

}  // extern "C"
