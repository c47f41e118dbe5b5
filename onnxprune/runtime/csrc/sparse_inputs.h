// The weights of a sparse operator, as its node holds them.
#pragma once

#include "node.h"

namespace onnxprune {

enum InputIndex : size_t { kX, kValues, kColumns, kRowStarts, kBias, kResidual, kInputCount };

// The weights of a node, after everything has been checked that the kernels rely on.
SparseMatrix matrix_of(const ort::Api* api, const ort::KernelInfo* info, int64_t columns);

// Neighbouring rows that share their columns, 1 or 4.
int block_of(const Attributes& attributes, const SparseMatrix& matrix);

}  // namespace onnxprune
