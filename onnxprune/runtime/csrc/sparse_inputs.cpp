#include "sparse_inputs.h"

#include <algorithm>
#include <initializer_list>

#include "half.h"

namespace onnxprune {

using namespace ort;

namespace {

constexpr const char* kInputNames[kInputCount] = {"X",          "values", "columns",
                                                  "row_starts", "bias",   "residual"};

Tensor constant(const Api* api, const KernelInfo* info, InputIndex index,
                std::initializer_list<int> types, const char* type_names) {
  const Value* value = constant_input(api, info, index);
  const std::string name = kInputNames[index];
  if (!value) refuse(name + " is not an initializer; weights must be constant");
  const Tensor tensor = tensor_of(api, value);
  if (tensor.shape.size() != 1 ||
      std::find(types.begin(), types.end(), tensor.type) == types.end()) {
    refuse(name + " has the shape " + listed(tensor.shape) + " and the element type " +
           std::to_string(tensor.type) + "; expected one axis of " + type_names);
  }
  return tensor;
}

}  // namespace

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

}  // namespace onnxprune
