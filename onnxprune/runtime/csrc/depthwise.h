#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "bands.h"
#include "expansion.h"
#include "geometry.h"

namespace onnxprune {

// What a DepthwiseConv node says: each channel is convolved with a kernel of its own. Its weights
// are dense; it is here so that the plain layout need not change between two sparse convolutions,
// and so that what a sparse one makes can be convolved where it is made.
struct DepthwiseSpec {
  int64_t channels = 0;
  WindowSpec window;
  Activation activation = Activation::kNone;
  float alpha = 0, beta = 0;
};

struct DepthwiseCall {
  const float* x;         // or null, where an expansion makes it
  const float* weights;   // (channels, taps)
  const float* bias;      // or null
  const float* residual;  // or null
  float* y;
  int64_t batch, height, width;
  const Expansion* expansion = nullptr;
};

class DepthwiseTasks {
 public:
  DepthwiseTasks(const DepthwiseSpec&, const KernelSet&, const DepthwiseCall&);

  size_t preparations() const { return 0; }
  void prepare(size_t) const {}

  size_t count() const {
    return size_t(call_.batch) * (by_tile() && !call_.expansion ? tiles_ : 1) * parts_;
  }
  void run(size_t task) const;

 private:
  DepthwiseWork work(int64_t image, uint32_t from, uint32_t to) const;
  Target target(int64_t image, int64_t first) const;
  bool by_tile() const { return !bands_ && shifts_.empty(); }
  void run_bands(int64_t image, uint32_t from, uint32_t to) const;
  void run_expanded(int64_t image, uint32_t from, uint32_t to) const;
  void convolve_shifted(DepthwiseWork own, const Target& place) const;
  void run_tile(int64_t image, int64_t tile, uint32_t from, uint32_t to) const;

  const DepthwiseSpec& spec_;
  const KernelSet& kernels_;
  DepthwiseCall call_;
  Geometry geometry_;
  size_t tiles_, parts_;
  // One of these, or neither, where each tile is a task.
  std::optional<Bands> bands_;
  std::vector<Shift> shifts_;  // (tiles, taps)
};

}  // namespace onnxprune
