// The weights of a sparse operator, as its node holds them.
#pragma once

#include "node.h"

namespace onnxprune {

enum InputIndex : size_t { kX, kValues, kColumns, kRowStarts, kBias, kResidual, kInputCount };

// The weights of a node, after everything has been checked that the kernels rely on. Values that
// are stored as float16 are expanded into `expanded`, which has to live as long as the matrix.
SparseMatrix matrix_of(const ort::Api* api, const ort::KernelInfo* info, int64_t columns,
                       std::vector<float>& expanded);

// Neighbouring rows that share their columns, 1 or 4.
int block_of(const Attributes& attributes, const SparseMatrix& matrix);

}  // namespace onnxprune
