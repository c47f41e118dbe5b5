#pragma once

#include <cstdint>

#include "geometry.h"
#include "packed.h"
#include "splits.h"

namespace onnxprune {

// What a SparseConv node says.
struct ConvolutionSpec {
  int64_t channels = 0;
  WindowSpec window;
  bool x_tiled = false;
  bool y_tiled = false;
  Activation activation = Activation::kNone;
  float alpha = 0, beta = 0;

  bool reads_in_place() const { return x_tiled && window.pointwise(); }
};

struct ConvolutionCall {
  const float* x;
  const float* bias;      // or null
  const float* residual;  // or null
  float* y;
  int64_t batch, height, width;
};

// A convolution for one call, cut into tasks that can run in any order and at the same time.
class ConvolutionTasks {
 public:
  ConvolutionTasks(const ConvolutionSpec&, const PackedWeights&, const KernelSet&,
                   const ConvolutionCall&);

  // Tasks that have to be done before `run`, likewise in any order.
  size_t preparations() const { return geometry_.phased() ? size_t(call_.batch * spec_.channels) : 0; }
  void prepare(size_t task) const;

  size_t count() const { return splits_.count(); }
  void run(size_t task) const;

 private:
  // Names what the weights read after this block of an input in place.
  void fetch_ahead(BlockWork& work, const float* tile_start, size_t block, size_t tile) const;

  enum class Source { kInPlace, kShifted, kWindows };

  const ConvolutionSpec& spec_;
  const PackedWeights& weights_;
  const KernelSet& kernels_;
  ConvolutionCall call_;
  Geometry geometry_;
  bool y_tiled_;
  Source source_;
  size_t tiles_;  // of an image
  Splits splits_;
  ptrdiff_t phase_stride_ = 0;  // floats from the phases of a channel to those of the next one
  float* phases_ = nullptr;     // of all images, in the scratch memory of the calling thread
};

}  // namespace onnxprune
