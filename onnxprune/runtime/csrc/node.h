// What a node of ONNX Runtime says, read through its C interface, and how errors go back to it.
#pragma once

#include <array>
#include <cstdint>
#include <exception>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "kernels.h"
#include "ort_abi.h"

namespace onnxprune {

// An error with the node's name and a code of ONNX Runtime.
struct Refusal {
  int code;
  std::string text;
};

ort::Status* status_of(const ort::Api* api, const Refusal& refusal);

// Runs `body` and turns what it throws into a status, since exceptions must not cross the C
// interface.
template <class Body>
ort::Status* guarded(const ort::Api* api, const std::string& where, Body body) {
  try {
    body();
    return nullptr;
  } catch (const Refusal& refusal) {
    return status_of(api, {refusal.code, "onnxprune " + where + ": " + refusal.text});
  } catch (const std::bad_alloc&) {
    return status_of(api, {ort::kFail, "onnxprune " + where + ": out of memory"});
  } catch (const std::exception& error) {
    return status_of(api, {ort::kFail, "onnxprune " + where + ": " + error.what()});
  }
}

// Throws the message of a status of ONNX Runtime.
void check(const ort::Api* api, ort::Status* status);

bool succeeded(const ort::Api* api, ort::Status* status);

[[noreturn]] void refuse(const std::string& text);

std::string listed(const std::vector<int64_t>& sizes);

int64_t size_of(const std::vector<int64_t>& shape);

struct Tensor {
  const ort::Value* value = nullptr;
  std::vector<int64_t> shape;
  int type = 0;

  int64_t size() const { return size_of(shape); }
};

Tensor tensor_of(const ort::Api* api, const ort::Value* value);

// An input that is an initializer; null where there is none, or where a caller gives it.
const ort::Value* constant_input(const ort::Api* api, const ort::KernelInfo* info, size_t index);

template <class T>
const T* data_of(const ort::Api* api, const ort::Value* value) {
  void* data = nullptr;
  check(api, ort::GetData::of(api)(const_cast<ort::Value*>(value), &data));
  return static_cast<const T*>(data);
}

// Attributes of one node.
class Attributes {
 public:
  Attributes(const ort::Api* api, const ort::KernelInfo* info) : api_(api), info_(info) {}

  // Attributes that are missing have the value `otherwise`, or are empty; of another type they are
  // refused.
  int64_t integer(const char* name, int64_t otherwise) const;
  float real(const char* name, float otherwise) const;
  std::string text(const char* name) const;
  std::vector<int64_t> integers(const char* name) const;
  // Of the attributes `activation`, `alpha` and `beta`, whose names begin with `prefix`.
  Activation activation(float* alpha, float* beta, const std::string& prefix = "") const;
  // Whether an attribute names the tiled layout.
  bool tiled(const char* name) const;

 private:
  // Refuses an attribute that is there, but was not found as what is expected.
  void check_missing(const char* name, const char* expected) const;

  const ort::Api* api_;
  const ort::KernelInfo* info_;
};

std::string node_name(const ort::Api* api, const ort::KernelInfo* info);

}  // namespace onnxprune
