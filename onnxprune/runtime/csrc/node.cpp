#include "node.h"

#include <cmath>

namespace onnxprune {

using namespace ort;

Status* status_of(const Api* api, const Refusal& refusal) {
  return CreateStatus::of(api)(refusal.code, refusal.text.c_str());
}

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

const Value* constant_input(const Api* api, const KernelInfo* info, size_t index) {
  int is_constant = 0;
  const Value* value = nullptr;
  check(api, GetConstantInput::of(api)(info, index, &is_constant, &value));
  return is_constant ? value : nullptr;
}

int64_t Attributes::integer(const char* name, int64_t otherwise) const {
  int64_t value = 0;
  if (succeeded(api_, AttributeInt::of(api_)(info_, name, &value))) return value;
  check_missing(name, "an integer");
  return otherwise;
}

float Attributes::real(const char* name, float otherwise) const {
  float value = 0;
  if (!succeeded(api_, AttributeFloat::of(api_)(info_, name, &value))) {
    check_missing(name, "a float");
    return otherwise;
  }
  if (std::isnan(value)) refuse(std::string(name) + " is not a number");
  return value;
}

std::string Attributes::text(const char* name) const {
  size_t size = 0;
  if (!succeeded(api_, AttributeString::of(api_)(info_, name, nullptr, &size))) {
    check_missing(name, "a string");
    return "";
  }
  if (size == 0) return "";
  std::string value(size, '\0');
  check(api_, AttributeString::of(api_)(info_, name, &value[0], &size));
  return value.c_str();
}

std::vector<int64_t> Attributes::integers(const char* name) const {
  size_t size = 0;
  if (!succeeded(api_, AttributeInts::of(api_)(info_, name, nullptr, &size))) {
    check_missing(name, "a list of integers");
    return {};
  }
  if (size == 0) refuse(std::string(name) + " has no integers; expected a list of them");
  std::vector<int64_t> values(size);
  check(api_, AttributeInts::of(api_)(info_, name, values.data(), &size));
  return values;
}

// ONNX Runtime does not tell an attribute that is missing from one of another type. Lists of strings
// and tensors pass for missing ones: there is no call that would find them.
void Attributes::check_missing(const char* name, const char* expected) const {
  int64_t integer = 0;
  float real = 0;
  size_t size = 0;
  const bool there = succeeded(api_, AttributeInt::of(api_)(info_, name, &integer)) ||
                     succeeded(api_, AttributeFloat::of(api_)(info_, name, &real)) ||
                     succeeded(api_, AttributeString::of(api_)(info_, name, nullptr, &size)) ||
                     succeeded(api_, AttributeInts::of(api_)(info_, name, nullptr, &size)) ||
                     succeeded(api_, AttributeFloats::of(api_)(info_, name, nullptr, &size));
  if (there) refuse(std::string(name) + " has another type; expected " + expected);
}

Activation Attributes::activation(float* alpha, float* beta,
                                  const std::string& prefix) const {
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
  *alpha = real((prefix + "alpha").c_str(), 0);
  *beta = real((prefix + "beta").c_str(), 0);
  const std::string wanted = text((prefix + "activation").c_str());
  std::string known;
  for (const auto& [name, activation] : kNames) {
    if (wanted == name) {
      if (activation == Activation::kClip && *alpha > *beta) {
        refuse(prefix + "alpha is above " + prefix + "beta; expected the lower end of Clip first");
      }
      return activation;
    }
    known += (known.empty() ? "'" : ", '") + std::string(name) + "'";
  }
  refuse(prefix + "activation is '" + wanted + "'; expected one of " + known);
}

bool Attributes::tiled(const char* name) const {
  const std::string layout = text(name);
  if (layout.empty() || layout == "plain") return false;
  if (layout == "tiled") return true;
  refuse(std::string(name) + " is '" + layout + "'; expected 'plain' or 'tiled'");
}

std::string node_name(const Api* api, const KernelInfo* info) {
  size_t size = 0;
  if (!succeeded(api, GetNodeName::of(api)(info, nullptr, &size)) || size < 2) return "(no name)";
  std::string name(size, '\0');
  if (!succeeded(api, GetNodeName::of(api)(info, &name[0], &size))) return "(no name)";
  return "'" + std::string(name.c_str()) + "'";
}

}  // namespace onnxprune
