#include "product.h"

#include <algorithm>

#include "scratch.h"
#include "tiles.h"

namespace onnxprune {
ProductTasks::ProductTasks(const ProductSpec& spec, const PackedWeights& weights,
                           const KernelSet& kernels, const ProductCall& call)
    : spec_(spec), weights_(weights), kernels_(kernels), call_(call), splits_(0, 1) {
  if (few()) {
    splits_ = {size_t(call.tokens), std::min(weights.chunk_count(), 2 * processors())};
  } else {
    splits_ = Splits::of(weights, size_t(tile_count(call.tokens)), tile_size(call.tokens, 0), 5.0);
  }
}

bool ProductTasks::few() const { return call_.tokens <= kFewTokens; }

void ProductTasks::run_rows(int64_t token, size_t from, size_t to) const {
  const ptrdiff_t offset = token * ptrdiff_t(weights_.rows()) + ptrdiff_t(from);
  float* y = call_.y + offset;
  kernels_.dot_rows(call_.matrix, from, to, call_.x + token * spec_.features, y);
  for (size_t row = 0; row < to - from; ++row) {
    if (call_.bias) y[row] += call_.bias[from + row];
    if (call_.residual) y[row] += call_.residual[offset + ptrdiff_t(row)];
  }
  if (spec_.activation != Activation::kNone) {
    kernels_.activate(spec_.activation, spec_.alpha, spec_.beta, y, to - from);
  }
}

void ProductTasks::run(size_t task) const {
  const Part part = splits_.part(task);
  const size_t from = weights_.chunk_count() * part.piece / part.pieces;
  const size_t to = weights_.chunk_count() * (part.piece + 1) / part.pieces;
  if (few()) {
    run_rows(int64_t(part.tile), weights_.chunk_start(from), weights_.chunk_start(to));
    return;
  }
  const int64_t first_token = int64_t(part.tile) * kTile;
  const int count = tile_size(call_.tokens, int64_t(part.tile));
  const size_t first_row = weights_.chunk_start(from);
  const size_t rows = weights_.chunk_start(to) - first_row;
  const auto outputs = ptrdiff_t(weights_.rows());

  Scratch& own = scratch();
  Target target{};
  target.count = count;
  BlockWork work{};
  work.bias = call_.bias;
  work.last = false;  // sums of whole rows are turned round below
  work.sums = own.sums.array<float>(rows * size_t(kMaxTile));
  float* slab = own.slab.array<float>(weights_.largest_block() * size_t(kMaxTile));
  work.slab = slab;
  const float* source = call_.x + first_token * spec_.features;
  for (size_t block = 0; block < weights_.block_count(); ++block) {
    size_t size;
    weights_.block(block, &size);
    kernels_.pack_transposed(slab, source + ptrdiff_t(weights_.block_start(block)),
                             ptrdiff_t(spec_.features), size, count);
    weights_.multiply(block, from, to, work, target);
  }
  const ptrdiff_t offset = ptrdiff_t(first_token) * outputs + ptrdiff_t(first_row);
  target.y = call_.y + offset;
  target.y_pitch = outputs;
  target.residual = call_.residual ? call_.residual + offset : nullptr;
  target.residual_pitch = outputs;
  set_activation(target, spec_.activation, spec_.alpha, spec_.beta);
  kernels_.store_transposed(work.sums, rows, target);
}

}  // namespace onnxprune
