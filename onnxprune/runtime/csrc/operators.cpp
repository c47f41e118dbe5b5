// The operators SparseConv and SparseMatMul for ONNX Runtime; docs/reference/sparse-operators.md
// says what they compute.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "convolution.h"
#include "depthwise.h"
#include "half.h"
#include "ort_abi.h"
#include "packed.h"
#include "product.h"

namespace onnxprune {
namespace {

using namespace ort;

constexpr const char* kDomain = "onnxprune";

// An error with the node's name and a code of ONNX Runtime.
struct Refusal {
  int code;
  std::string text;
};

Status* status_of(const Api* api, const Refusal& refusal) {
  return CreateStatus::of(api)(refusal.code, refusal.text.c_str());
}

// Runs `body` and turns what it throws into a status, since exceptions must not cross the C
// interface.
template <class Body>
Status* guarded(const Api* api, const std::string& where, Body body) {
  try {
    body();
    return nullptr;
  } catch (const Refusal& refusal) {
    return status_of(api, {refusal.code, "onnxprune " + where + ": " + refusal.text});
  } catch (const std::bad_alloc&) {
    return status_of(api, {kFail, "onnxprune " + where + ": out of memory"});
  } catch (const std::exception& error) {
    return status_of(api, {kFail, "onnxprune " + where + ": " + error.what()});
  }
}

// Throws the message of a status of ONNX Runtime.
void check(const Api* api, Status* status) {
  if (!status) return;
  std::string text = GetErrorMessage::of(api)(status);
  ReleaseStatus::of(api)(status);
  throw Refusal{kFail, text};
}

bool succeeded(const Api* api, Status* status) {
  if (!status) return true;
  ReleaseStatus::of(api)(status);
  return false;
}

[[noreturn]] void refuse(const std::string& text) { throw Refusal{kInvalidGraph, text}; }

std::string listed(const std::vector<int64_t>& sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + "]";
}

int64_t size_of(const std::vector<int64_t>& shape) {
  int64_t total = 1;
  for (int64_t axis : shape) total *= axis;
  return total;
}

struct Tensor {
  const Value* value = nullptr;
  std::vector<int64_t> shape;
  int type = 0;

  int64_t size() const { return size_of(shape); }
};

Tensor tensor_of(const Api* api, const Value* value) {
  Tensor tensor;
  tensor.value = value;
  ShapeInfo* info = nullptr;
  check(api, GetShapeInfo::of(api)(value, &info));
  size_t rank = 0;
  bool read = succeeded(api, GetDimensionsCount::of(api)(info, &rank));
  tensor.shape.resize(rank);
  read = read && succeeded(api, GetDimensions::of(api)(info, tensor.shape.data(), rank));
  read = read && succeeded(api, GetElementType::of(api)(info, &tensor.type));
  ReleaseShapeInfo::of(api)(info);
  if (!read) throw Refusal{kFail, "ONNX Runtime did not tell a tensor's shape"};
  return tensor;
}

template <class T>
const T* data_of(const Api* api, const Value* value) {
  void* data = nullptr;
  check(api, GetData::of(api)(const_cast<Value*>(value), &data));
  return static_cast<const T*>(data);
}

// Attributes of one node.
class Attributes {
 public:
  Attributes(const Api* api, const KernelInfo* info) : api_(api), info_(info) {}

  int64_t integer(const char* name, int64_t otherwise) const {
    int64_t value = 0;
    return succeeded(api_, AttributeInt::of(api_)(info_, name, &value)) ? value : otherwise;
  }

  float real(const char* name, float otherwise) const {
    float value = 0;
    return succeeded(api_, AttributeFloat::of(api_)(info_, name, &value)) ? value : otherwise;
  }

  std::string text(const char* name) const {
    size_t size = 0;
    if (!succeeded(api_, AttributeString::of(api_)(info_, name, nullptr, &size)) || size == 0) {
      return "";
    }
    std::string value(size, '\0');
    check(api_, AttributeString::of(api_)(info_, name, &value[0], &size));
    return value.c_str();
  }

  std::vector<int64_t> integers(const char* name) const {
    size_t size = 0;
    if (!succeeded(api_, AttributeInts::of(api_)(info_, name, nullptr, &size))) return {};
    std::vector<int64_t> values(size);
    if (size) check(api_, AttributeInts::of(api_)(info_, name, values.data(), &size));
    return values;
  }

  Activation activation(float* alpha, float* beta) const {
    static constexpr std::array<std::pair<const char*, Activation>, 10> kNames{{
        {"", Activation::kNone},
        {"Relu", Activation::kRelu},
        {"Clip", Activation::kClip},
        {"HardSwish", Activation::kHardSwish},
        {"Silu", Activation::kSilu},
        {"Gelu", Activation::kGelu},
        {"GeluTanh", Activation::kGeluTanh},
        {"LeakyRelu", Activation::kLeakyRelu},
        {"HardSigmoid", Activation::kHardSigmoid},
        {"Sigmoid", Activation::kSigmoid},
    }};
    *alpha = real("alpha", 0);
    *beta = real("beta", 0);
    const std::string wanted = text("activation");
    std::string known;
    for (const auto& [name, activation] : kNames) {
      if (wanted == name) return activation;
      known += (known.empty() ? "'" : ", '") + std::string(name) + "'";
    }
    refuse("activation is '" + wanted + "'; expected one of " + known);
  }

  bool tiled(const char* name) const {
    const std::string layout = text(name);
    if (layout.empty() || layout == "plain") return false;
    if (layout == "tiled") return true;
    refuse(std::string(name) + " is '" + layout + "'; expected 'plain' or 'tiled'");
  }

 private:
  const Api* api_;
  const KernelInfo* info_;
};

std::string node_name(const Api* api, const KernelInfo* info) {
  size_t size = 0;
  if (!succeeded(api, GetNodeName::of(api)(info, nullptr, &size)) || size < 2) return "(no name)";
  std::string name(size, '\0');
  if (!succeeded(api, GetNodeName::of(api)(info, &name[0], &size))) return "(no name)";
  return "'" + std::string(name.c_str()) + "'";
}

enum InputIndex : size_t { kX, kValues, kColumns, kRowStarts, kBias, kResidual, kInputCount };
enum DepthwiseInput : size_t {
  kDepthwiseWeight = 1,
  kDepthwiseBias,
  kDepthwiseResidual,
  kDepthwiseInputCount
};

constexpr const char* kInputNames[kInputCount] = {"X",          "values", "columns",
                                                  "row_starts", "bias",   "residual"};

Tensor constant(const Api* api, const KernelInfo* info, InputIndex index,
                std::initializer_list<int> types, const char* type_names) {
  int is_constant = 0;
  const Value* value = nullptr;
  check(api, GetConstantInput::of(api)(info, index, &is_constant, &value));
  const std::string name = kInputNames[index];
  if (!is_constant || !value) refuse(name + " is not an initializer; weights must be constant");
  const Tensor tensor = tensor_of(api, value);
  if (tensor.shape.size() != 1 ||
      std::find(types.begin(), types.end(), tensor.type) == types.end()) {
    refuse(name + " has the shape " + listed(tensor.shape) + " and the element type " +
           std::to_string(tensor.type) + "; expected one axis of " + type_names);
  }
  return tensor;
}

// The weights of a node, after everything has been checked that the kernels rely on. Values that
// are stored as float16 are expanded into `expanded`, which has to live as long as the matrix.
SparseMatrix matrix_of(const Api* api, const KernelInfo* info, int64_t columns,
                       std::vector<float>& expanded) {
  const Tensor values = constant(api, info, kValues, {kFloat, kFloat16}, "float32 or float16");
  const Tensor column_of = constant(api, info, kColumns, {kUint16}, "uint16");
  const Tensor row_starts = constant(api, info, kRowStarts, {kInt32}, "int32");
  if (columns < 1 || columns > 65536) {
    refuse("its weight has " + std::to_string(columns) + " columns; expected 1 to 65536");
  }
  if (row_starts.size() < 2) refuse("row_starts is too short for one row");
  SparseMatrix matrix{};
  matrix.rows = size_t(row_starts.size() - 1);
  matrix.columns = size_t(columns);
  if (values.type == kFloat16) {
    const uint16_t* halves = data_of<uint16_t>(api, values.value);
    expanded.resize(size_t(values.size()));
    std::transform(halves, halves + expanded.size(), expanded.begin(), float_of_half);
    matrix.values = expanded.data();
  } else {
    matrix.values = data_of<float>(api, values.value);
  }
  matrix.column_of = data_of<uint16_t>(api, column_of.value);
  matrix.row_starts = data_of<int32_t>(api, row_starts.value);
  if (values.size() != column_of.size()) {
    refuse("values has " + std::to_string(values.size()) + " entries and columns " +
           std::to_string(column_of.size()) + "; expected as many");
  }
  if (matrix.row_starts[0] != 0 || matrix.row_starts[matrix.rows] != values.size()) {
    refuse("row_starts goes from " + std::to_string(matrix.row_starts[0]) + " to " +
           std::to_string(matrix.row_starts[matrix.rows]) + "; expected 0 to " +
           std::to_string(values.size()) + ", the number of values");
  }
  for (size_t row = 0; row < matrix.rows; ++row) {
    const int32_t from = matrix.row_starts[row], to = matrix.row_starts[row + 1];
    if (from > to || to > values.size()) {
      refuse("row_starts falls or leaves the values at row " + std::to_string(row));
    }
    for (int32_t i = from; i < to; ++i) {
      if (matrix.column_of[i] >= columns || (i > from && matrix.column_of[i] <= matrix.column_of[i - 1])) {
        refuse("columns of row " + std::to_string(row) + " do not rise within 0 to " +
               std::to_string(columns - 1) + ": got " + std::to_string(matrix.column_of[i]));
      }
    }
  }
  return matrix;
}

int block_of(const Attributes& attributes, const SparseMatrix& matrix) {
  const int64_t block = attributes.integer("block", 1);
  if (block != 1 && block != 4) {
    refuse("block is " + std::to_string(block) + "; expected 1 or 4");
  }
  if (matrix.rows % size_t(block)) {
    refuse("block is 4, but " + std::to_string(matrix.rows) + " outputs are no multiple of it");
  }
  return int(block);
}

// What both operators do with ONNX Runtime.
class Kernel {
 public:
  Kernel(const Api* api, const KernelInfo* info, const char* type)
      : api_(api), where_(std::string(type) + " " + node_name(api, info)) {}
  virtual ~Kernel() = default;

  Status* compute(KernelContext* context) {
    return guarded(api_, where_, [&] { run(context); });
  }

 protected:
  virtual void run(KernelContext* context) = 0;

  const Value* input(const KernelContext* context, size_t index) const {
    size_t count = 0;
    check(api_, GetInputCount::of(api_)(context, &count));
    if (index >= count) return nullptr;
    const Value* value = nullptr;
    check(api_, GetInput::of(api_)(context, index, &value));
    return value;
  }

  const float* bias(const KernelContext* context, size_t index, size_t rows) const {
    const Value* value = input(context, index);
    if (!value) return nullptr;
    const Tensor tensor = tensor_of(api_, value);
    if (tensor.shape != std::vector<int64_t>{int64_t(rows)}) {
      refuse("bias has the shape " + listed(tensor.shape) + "; expected [" + std::to_string(rows) +
             "]");
    }
    return data_of<float>(api_, value);
  }

  const float* residual(const KernelContext* context, size_t index,
                        const std::vector<int64_t>& shape) const {
    const Value* value = input(context, index);
    if (!value) return nullptr;
    const Tensor tensor = tensor_of(api_, value);
    if (tensor.shape != shape) {
      refuse("residual has the shape " + listed(tensor.shape) + "; expected that of the output, " +
             listed(shape));
    }
    return data_of<float>(api_, value);
  }

  float* output(KernelContext* context, const std::vector<int64_t>& shape) const {
    Value* value = nullptr;
    check(api_, GetOutput::of(api_)(context, 0, shape.data(), shape.size(), &value));
    void* data = nullptr;
    check(api_, GetData::of(api_)(value, &data));
    return static_cast<float*>(data);
  }

  // Runs tasks on the session's threads, their preparations first.
  template <class Tasks>
  void spread(const KernelContext* context, const Tasks& tasks) const {
    parallel(context, tasks.preparations(), [&](size_t task) { tasks.prepare(task); });
    parallel(context, tasks.count(), [&](size_t task) { tasks.run(task); });
  }

  // Calls `body` for each number below `count`. What it throws is thrown here.
  template <class Body>
  void parallel(const KernelContext* context, size_t count, const Body& body) const {
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
      check(api_, ParallelFor::of(api_)(context, one, count, 0, &shared));
    }
    if (shared.error) std::rethrow_exception(shared.error);
  }

  const Api* api_;
  std::string where_;
};

// The attributes of a convolution's window, with one or two spatial axes.
class WindowAttributes {
 public:
  explicit WindowAttributes(const Attributes& attributes) : attributes_(attributes) {
    const std::vector<int64_t> kernel = attributes.integers("kernel_shape");
    flat_ = kernel.size() == 1;
    if (kernel.empty() || kernel.size() > 2) {
      refuse("kernel_shape is " + listed(kernel) + "; expected one or two sizes");
    }
    read("kernel_shape", spec_.kernel);
    read("strides", spec_.strides);
    read("dilations", spec_.dilations);
    read_pads();
    if (spec_.kernel[0] * spec_.kernel[1] > 65536) {
      refuse("kernel_shape is " + listed(kernel) + "; at most 65536 taps are supported");
    }
  }

  const WindowSpec& spec() const { return spec_; }
  bool flat() const { return flat_; }

 private:
  // One or two values into (height, width); the height of a one-dimensional node is 1.
  void read(const char* name, int64_t (&to)[2]) const {
    const std::vector<int64_t> values = attributes_.integers(name);
    if (values.size() != (flat_ ? 1u : 2u)) {
      refuse(std::string(name) + " is " + listed(values) + "; expected " + (flat_ ? "one" : "two") +
             " values");
    }
    to[0] = flat_ ? 1 : values[0];
    to[1] = values.back();
    for (int64_t value : values) {
      if (value < 1 || value > 65536) {
        refuse(std::string(name) + " is " + listed(values) + "; expected 1 to 65536");
      }
    }
  }

  void read_pads() {
    const std::vector<int64_t> values = attributes_.integers("pads");
    if (values.size() != (flat_ ? 2u : 4u)) {
      refuse("pads is " + listed(values) + "; expected " + (flat_ ? "two" : "four") + " values");
    }
    for (int64_t value : values) {
      if (value < 0 || value > 65536) {
        refuse("pads is " + listed(values) + "; expected 0 to 65536");
      }
    }
    if (flat_) {
      spec_.pads[1] = values[0];
      spec_.pads[3] = values[1];
    } else {
      std::copy(values.begin(), values.end(), spec_.pads);
    }
  }

  const Attributes& attributes_;
  WindowSpec spec_;
  bool flat_ = false;
};

// An input of one or two spatial axes, and what a window makes of it.
struct Images {
  int64_t batch, height, width;
  std::vector<int64_t> output_shape;
};

Images images_of(const Tensor& x, const WindowSpec& window, bool flat, int64_t channels,
                 int64_t outputs) {
  const size_t rank = flat ? 3 : 4;
  if (x.shape.size() != rank || x.shape[1] != channels) {
    refuse("X has the shape " + listed(x.shape) + "; expected " + std::to_string(rank) +
           " axes with " + std::to_string(channels) + " channels");
  }
  Images images{x.shape[0], flat ? 1 : x.shape[2], x.shape[rank - 1], {}};
  const int64_t size = images.height * images.width * channels;
  if (size > INT32_MAX) {
    refuse("an image of X has " + std::to_string(size) +
           " elements; at most 2147483647 are supported");
  }
  images.output_shape = {images.batch, outputs, window.output_size(0, images.height),
                         window.output_size(1, images.width)};
  if (flat) images.output_shape.erase(images.output_shape.begin() + 2);
  return images;
}

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
    spread(context, ConvolutionTasks(spec_, *weights_, kernels(), call));
  }

 private:
  ConvolutionSpec spec_;
  bool flat_ = false;
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
  }

 protected:
  void run(KernelContext* context) override {
    const Tensor x = tensor_of(api_, input(context, kX));
    const Tensor weight = tensor_of(api_, input(context, kDepthwiseWeight));
    const auto taps = int64_t(spec_.window.taps());
    if (weight.shape.size() != 2 || weight.shape[1] != taps) {
      refuse("taps has the shape " + listed(weight.shape) + "; expected (channels, " +
             std::to_string(taps) + ")");
    }
    DepthwiseSpec spec = spec_;
    spec.channels = weight.shape[0];
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
  DepthwiseSpec spec_;
  bool flat_ = false;
};

class ProductKernel : public Kernel {
 public:
  static constexpr const char* kType = "SparseMatMul";

  ProductKernel(const Api* api, const KernelInfo* info) : Kernel(api, info, kType) {
    const Attributes attributes(api, info);
    spec_.features = attributes.integer("in_features", 0);
    spec_.activation = attributes.activation(&spec_.alpha, &spec_.beta);
    const SparseMatrix matrix = matrix_of(api, info, spec_.features, expanded_);
    weights_ = std::make_unique<PackedWeights>(matrix, 1, true, block_of(attributes, matrix),
                                               kernels());
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

template <class KernelType>
CustomOp sparse_operator(uint32_t version) {
  CustomOp op = operator_of<KernelType>(version);
  op.get_input_type = [](const CustomOp*, size_t index) -> int {
    static constexpr int kTypes[]{kFloat, kAnyType, kUint16, kInt32, kFloat, kFloat};
    return kTypes[index];
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

// All operators, for the version of ONNX Runtime that has loaded the library.
struct Operators {
  CustomOp convolution, depthwise, product;

  explicit Operators(uint32_t version)
      : convolution(sparse_operator<ConvolutionKernel>(version)),
        depthwise(depthwise_operator(version)),
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
      check(api, ort::AddToDomain::of(api)(made, &operators.product));
      domain = made;
    }
    check(api, ort::AddDomain::of(api)(options, domain));
  });
}

// The name of the instruction set in use, for diagnosis.
ONNXPRUNE_EXPORT const char* OnnxpruneKernels() { return onnxprune::kernels().name; }

}  // extern "C"
