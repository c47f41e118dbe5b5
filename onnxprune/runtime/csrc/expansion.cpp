#include "expansion.h"

namespace onnxprune {

Expansion::Expansion(const ExpansionSpec& spec, const SparseMatrix& matrix,
                     const KernelSet& kernels, const float* x, const float* bias, int64_t pixels)
    : spec_(spec), matrix_(matrix), kernels_(kernels), x_(x), bias_(bias), pixels_(pixels) {}

void Expansion::compute(int64_t image, uint32_t channel, int64_t first, int64_t count,
                        float* to) const {
  if (count <= 0) return;
  const int32_t start = matrix_.row_starts[channel];
  ExpansionWork work{};
  work.x = x_ + image * spec_.channels * pixels_ + first;
  work.channel_stride = pixels_;
  work.values = matrix_.values + start;
  work.columns = matrix_.column_of + start;
  work.nonzeros = size_t(matrix_.row_starts[channel + 1] - start);
  work.bias = bias_ ? bias_[channel] : 0.0f;
  work.count = size_t(count);
  Target target{};
  target.y = to;
  set_activation(target, spec_.activation, spec_.alpha, spec_.beta);
  kernels_.expand(work, target);
}

}  // namespace onnxprune
