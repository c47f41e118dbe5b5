// Pointwise convolutions whose results are used where they are made, and never stored as a whole.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace onnxprune {

// What a node says of its pointwise convolution.
struct ExpansionSpec {
  int64_t channels = 0;  // that it reads
  Activation activation = Activation::kNone;
  float alpha = 0, beta = 0;
};

// A pointwise convolution of plain images, of which any pixels of a channel can be computed.
class Expansion {
 public:
  // `x` are images of `pixels` pixels each; `bias`, one for each row of the matrix, may be null.
  Expansion(const ExpansionSpec& spec, const SparseMatrix& matrix, const KernelSet& kernels,
            const float* x, const float* bias, int64_t pixels);

  // Computes the pixels `first` to `first + count` of an output channel. Up to a vector beyond
  // `to + count` is overwritten.
  void compute(int64_t image, uint32_t channel, int64_t first, int64_t count, float* to) const;

 private:
  const ExpansionSpec& spec_;
  SparseMatrix matrix_;
  const KernelSet& kernels_;
  const float* x_;
  const float* bias_;
  int64_t pixels_;
};

}  // namespace onnxprune
