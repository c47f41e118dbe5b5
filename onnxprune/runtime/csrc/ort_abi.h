// The slice of ONNX Runtime's C interface that the operators need.
//
// ONNX Runtime ships no headers in its Python packages. Its function table only ever grows at the
// end, so the positions below hold for every release from 1.17 on.
#pragma once

#include <cstddef>
#include <cstdint>

namespace onnxprune::ort {

struct Status;
struct SessionOptions;
struct OpDomain;
struct Value;
struct ShapeInfo;
struct KernelInfo;
struct KernelContext;
struct ShapeInferContext;
struct CustomOp;
struct Api;

constexpr uint32_t kApiVersion = 17;
constexpr uint32_t kInplaceVersion = 18;  // the first that lets an output take an input's memory

struct ApiBase {
  const Api* (*get_api)(uint32_t version);
  const char* (*get_version)();
};

// Codes of OrtErrorCode.
enum ErrorCode : int { kFail = 1, kInvalidArgument = 2, kInvalidGraph = 10 };

// Codes of ONNXTensorElementDataType.
enum ElementType : int {
  kAnyType = 0,
  kFloat = 1,
  kUint8 = 2,
  kUint16 = 4,
  kInt32 = 6,
  kFloat16 = 10
};

// Codes of OrtCustomOpInputOutputCharacteristic.
enum Characteristic : int { kRequired = 0, kOptional = 1 };

struct CustomOp {
  uint32_t version;
  void* (*create_kernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*get_name)(const CustomOp*);
  const char* (*get_execution_provider)(const CustomOp*);
  int (*get_input_type)(const CustomOp*, size_t);
  size_t (*get_input_count)(const CustomOp*);
  int (*get_output_type)(const CustomOp*, size_t);
  size_t (*get_output_count)(const CustomOp*);
  void (*compute)(void*, KernelContext*);
  void (*destroy)(void*);
  int (*get_input_characteristic)(const CustomOp*, size_t);
  int (*get_output_characteristic)(const CustomOp*, size_t);
  int (*get_input_memory)(const CustomOp*, size_t);
  int (*get_variadic_input_arity)(const CustomOp*);
  int (*get_variadic_input_homogeneity)(const CustomOp*);
  int (*get_variadic_output_arity)(const CustomOp*);
  int (*get_variadic_output_homogeneity)(const CustomOp*);
  Status* (*create_kernel_v2)(const CustomOp*, const Api*, const KernelInfo*, void**);
  Status* (*compute_v2)(void*, KernelContext*);
  Status* (*infer_shape)(const CustomOp*, ShapeInferContext*);
  int (*get_start_version)(const CustomOp*);
  int (*get_end_version)(const CustomOp*);
  // From version 18 on.
  size_t (*get_may_inplace)(int** inputs, int** outputs);
  void (*release_may_inplace)(int* inputs, int* outputs);
  size_t (*get_alias_map)(int** inputs, int** outputs);
  void (*release_alias_map)(int* inputs, int* outputs);
};
static_assert(sizeof(CustomOp) == 26 * sizeof(void*), "26 slots, the first padded to a pointer");

// One function of the table: its position and its type.
template <size_t Slot, class Function>
struct Entry {
  static Function of(const Api* api) {
    return reinterpret_cast<Function>(reinterpret_cast<void* const*>(api)[Slot]);
  }
};

using CreateStatus = Entry<0, Status* (*)(int, const char*)>;
using GetErrorMessage = Entry<2, const char* (*)(const Status*)>;
using CreateDomain = Entry<26, Status* (*)(const char*, OpDomain**)>;
using AddToDomain = Entry<27, Status* (*)(OpDomain*, const CustomOp*)>;
using AddDomain = Entry<28, Status* (*)(SessionOptions*, OpDomain*)>;
using GetData = Entry<51, Status* (*)(Value*, void**)>;
using GetElementType = Entry<60, Status* (*)(const ShapeInfo*, int*)>;
using GetDimensionsCount = Entry<61, Status* (*)(const ShapeInfo*, size_t*)>;
using GetDimensions = Entry<62, Status* (*)(const ShapeInfo*, int64_t*, size_t)>;
using GetShapeInfo = Entry<65, Status* (*)(const Value*, ShapeInfo**)>;
using AttributeFloat = Entry<85, Status* (*)(const KernelInfo*, const char*, float*)>;
using AttributeInt = Entry<86, Status* (*)(const KernelInfo*, const char*, int64_t*)>;
using AttributeString = Entry<87, Status* (*)(const KernelInfo*, const char*, char*, size_t*)>;
using GetInputCount = Entry<88, Status* (*)(const KernelContext*, size_t*)>;
using GetInput = Entry<90, Status* (*)(const KernelContext*, size_t, const Value**)>;
using GetOutput = Entry<91, Status* (*)(KernelContext*, size_t, const int64_t*, size_t, Value**)>;
using ReleaseStatus = Entry<93, void (*)(Status*)>;
using ReleaseShapeInfo = Entry<99, void (*)(ShapeInfo*)>;
using AttributeFloats = Entry<162, Status* (*)(const KernelInfo*, const char*, float*, size_t*)>;
using AttributeInts = Entry<163, Status* (*)(const KernelInfo*, const char*, int64_t*, size_t*)>;
using GetNodeName = Entry<244, Status* (*)(const KernelInfo*, char*, size_t*)>;
using GetConstantInput = Entry<249, Status* (*)(const KernelInfo*, size_t, int*, const Value**)>;
using ParallelFor =
    Entry<274, Status* (*)(const KernelContext*, void (*)(void*, size_t), size_t, size_t, void*)>;

}  // namespace onnxprune::ort
