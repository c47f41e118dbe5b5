#include "depthwise.h"

#include <algorithm>

#include "scratch.h"
#include "splits.h"
#include "tiles.h"

namespace onnxprune {
namespace {

// Fewer channels would not be worth finding out what the taps of a tile meet.
constexpr size_t kLeastChannels = 64;

// Output pixels up to which laying out a channel's rows takes longer than bands of them gain.
constexpr int64_t kSmallImage = 256;

}  // namespace

DepthwiseTasks::DepthwiseTasks(const DepthwiseSpec& spec, const KernelSet& kernels,
                               const DepthwiseCall& call)
    : spec_(spec),
      kernels_(kernels),
      call_(call),
      geometry_(spec.window, spec.channels, call.height, call.width, false),
      tiles_(size_t(tile_count(geometry_.out_pixels()))) {
  const bool small = geometry_.shifts_suffice() && geometry_.out_pixels() <= kSmallImage;
  if (!small && Bands::suit(spec.window)) {
    bands_.emplace(spec.window, call.height, call.width, kernels.width);
  } else if (geometry_.shifts_suffice()) {
    for (size_t tile = 0; tile < tiles_; ++tile) {
      const Shift* shifts = geometry_.shifts(scratch(), int64_t(tile));
      shifts_.insert(shifts_.end(), shifts, shifts + spec.window.taps());
    }
  }
  const bool whole = !by_tile();
  const auto channels = size_t(spec.channels);
  const size_t most = whole ? channels : std::max<size_t>(1, channels / kLeastChannels);
  const size_t tasks = std::max<size_t>(1, size_t(call.batch) * (whole ? 1 : tiles_));
  parts_ = processors() == 1 ? 1 : std::min(most, (2 * processors() + tasks - 1) / tasks);
}

void DepthwiseTasks::run(size_t task) const {
  const size_t part = task % parts_;
  const auto from = uint32_t(size_t(spec_.channels) * part / parts_);
  const auto to = uint32_t(size_t(spec_.channels) * (part + 1) / parts_);
  if (bands_) {
    run_bands(int64_t(task / parts_), from, to);
  } else if (!by_tile()) {
    run_shifted(int64_t(task / parts_), from, to);
  } else {
    run_tile(int64_t(task / parts_ / tiles_), int64_t(task / parts_ % tiles_), from, to);
  }
}

DepthwiseWork DepthwiseTasks::work(int64_t image, uint32_t from, uint32_t to) const {
  DepthwiseWork work{};
  work.x = call_.x + image * spec_.channels * geometry_.in_pixels();
  work.channel_stride = geometry_.in_pixels();
  work.weights = call_.weights;
  work.bias = call_.bias;
  work.taps = spec_.window.taps();
  work.from = from;
  work.to = to;
  return work;
}

// From pixel `first` of each channel on.
Target DepthwiseTasks::target(int64_t image, int64_t first) const {
  const int64_t out_pixels = geometry_.out_pixels();
  const int64_t offset = image * spec_.channels * out_pixels + first;
  Target target{};
  target.y = call_.y + offset;
  target.residual = call_.residual ? call_.residual + offset : nullptr;
  target.y_pitch = target.residual_pitch = out_pixels;
  set_activation(target, spec_.activation, spec_.alpha, spec_.beta);
  return target;
}

void DepthwiseTasks::run_bands(int64_t image, uint32_t from, uint32_t to) const {
  const DepthwiseWork own = work(image, from, to);
  const int64_t pixels = geometry_.out_pixels();
  // Two memories in turn: what was just written is slow to read at other places.
  const size_t size = (bands_->floats() + 15) / 16 * 16;
  float* memory = scratch().phases.array<float>(2 * size);
  std::fill(memory, memory + 2 * size, 0.0f);
  const int64_t bands = bands_->count();
  const int64_t steps = bands * int64_t(to - from);
  const auto fill = [&](int64_t step) {
    const ptrdiff_t channel = ptrdiff_t(from) + step / bands;
    bands_->fill(kernels_, own.x + channel * own.channel_stride, step % bands,
                 memory + step % 2 * ptrdiff_t(size));
  };
  fill(0);
  for (int64_t step = 0; step < steps; ++step) {
    if (step + 1 < steps) fill(step + 1);
    const ptrdiff_t channel = ptrdiff_t(from) + step / bands;
    const Band band = bands_->band(memory + step % 2 * ptrdiff_t(size), step % bands);
    Target place = target(image, channel * pixels + band.first_row * band.width);
    place.y_pitch = place.residual_pitch = place.count = band.width;
    kernels_.depthwise_band(band, own.weights + channel * ptrdiff_t(own.taps),
                            own.bias ? own.bias[channel] : 0.0f, place);
  }
}

void DepthwiseTasks::run_shifted(int64_t image, uint32_t from, uint32_t to) const {
  DepthwiseWork own = work(image, from, to);
  const int last_count = tile_size(geometry_.out_pixels(), int64_t(tiles_) - 1);
  if (!geometry_.phased()) {
    kernels_.depthwise_shifted(own, shifts_.data(), tiles_, last_count, target(image, 0));
    return;
  }
  float* phases = scratch().phases.array<float>(geometry_.phase_count() *
                                                size_t(geometry_.phase_size()));
  const float* x = own.x;
  own.x = phases;
  own.channel_stride = 0;
  for (uint32_t channel = from; channel < to; ++channel) {
    geometry_.split(kernels_, x + ptrdiff_t(channel) * geometry_.in_pixels(), phases);
    own.from = channel;
    own.to = channel + 1;
    kernels_.depthwise_shifted(own, shifts_.data(), tiles_, last_count, target(image, 0));
  }
}

void DepthwiseTasks::run_tile(int64_t image, int64_t tile, uint32_t from, uint32_t to) const {
  Target place = target(image, tile * kTile);
  place.count = tile_size(geometry_.out_pixels(), tile);
  kernels_.depthwise_windows(work(image, from, to),
                             geometry_.windows(scratch(), tile, kernels_.width), place);
}

}  // namespace onnxprune
