#pragma once

#include <cstdint>

#include "packed.h"
#include "splits.h"

namespace onnxprune {

// What a SparseMatMul node says, and one call of it: y (tokens, rows) of x (tokens, features).
struct ProductSpec {
  int64_t features = 0;
  Activation activation = Activation::kNone;
  float alpha = 0, beta = 0;
};

struct ProductCall {
  const float* x;
  const float* bias;      // or null
  const float* residual;  // or null
  float* y;
  int64_t tokens;
  SparseMatrix matrix;    // the same weights, row by row
};

// So few that a tile would be nearly empty: each row is a scalar product.
constexpr int64_t kFewTokens = 6;

class ProductTasks {
 public:
  ProductTasks(const ProductSpec&, const PackedWeights&, const KernelSet&, const ProductCall&);

  size_t preparations() const { return 0; }
  void prepare(size_t) const {}

  size_t count() const { return splits_.count(); }
  void run(size_t task) const;

 private:
  void run_rows(int64_t token, size_t from, size_t to) const;
  bool few() const;

  const ProductSpec& spec_;
  const PackedWeights& weights_;
  const KernelSet& kernels_;
  ProductCall call_;
  Splits splits_;
};

}  // namespace onnxprune
