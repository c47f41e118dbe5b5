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

// Floats of the channels that are expanded together where finding out what taps meet takes long.
constexpr int64_t kExpandedFloats = 65536;

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
  const bool whole = !by_tile() || call.expansion;
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
  } else if (call_.expansion) {
    run_expanded(int64_t(task / parts_), from, to);
  } else if (!by_tile()) {
    convolve_shifted(work(int64_t(task / parts_), from, to), target(int64_t(task / parts_), 0));
  } else {
    run_tile(int64_t(task / parts_ / tiles_), int64_t(task / parts_ % tiles_), from, to);
  }
}

DepthwiseWork DepthwiseTasks::work(int64_t image, uint32_t from, uint32_t to) const {
  DepthwiseWork work{};
  work.x = call_.x ? call_.x + image * spec_.channels * geometry_.in_pixels() : nullptr;
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
  const int64_t bands = bands_->count(), channels = int64_t(to - from);
  const int64_t steps = bands * channels;
  // What is read of an expansion's input stays in the cache for all channels of a band.
  const auto channel_of = [&](int64_t step) {
    return ptrdiff_t(from) + (call_.expansion ? step % channels : step / bands);
  };
  const auto band_of = [&](int64_t step) {
    return call_.expansion ? step / channels : step % bands;
  };
  const auto fill = [&](int64_t step) {
    const int64_t number = band_of(step);
    float* const to_memory = memory + step % 2 * ptrdiff_t(size);
    if (call_.expansion) {
      const auto [first, end] = bands_->input_rows(number);
      float* const rows = scratch().rows.array<float>(
          size_t((end - first) * call_.width + kernels_.width));
      call_.expansion->compute(image, uint32_t(channel_of(step)), first * call_.width,
                               (end - first) * call_.width, rows);
      bands_->fill(kernels_, rows, first, number, to_memory);
    } else {
      bands_->fill(kernels_, own.x + channel_of(step) * own.channel_stride, 0, number, to_memory);
    }
  };
  fill(0);
  for (int64_t step = 0; step < steps; ++step) {
    if (step + 1 < steps) fill(step + 1);
    const ptrdiff_t channel = channel_of(step);
    const Band band = bands_->band(memory + step % 2 * ptrdiff_t(size), band_of(step));
    Target place = target(image, channel * pixels + band.first_row * band.width);
    place.y_pitch = place.residual_pitch = place.count = band.width;
    kernels_.depthwise_band(band, own.weights + channel * ptrdiff_t(own.taps),
                            own.bias ? own.bias[channel] : 0.0f, place);
  }
}

// Some channels at a time, of which all is expanded before any is convolved.
void DepthwiseTasks::run_expanded(int64_t image, uint32_t from, uint32_t to) const {
  const int64_t pixels = geometry_.in_pixels();
  const ptrdiff_t stride = (pixels + kernels_.width + 15) / 16 * 16;
  const auto together = uint32_t(std::min<int64_t>(
      to - from, by_tile() ? std::max<int64_t>(1, kExpandedFloats / stride) : 1));
  float* const planes = scratch().rows.array<float>(size_t(together) * size_t(stride));
  DepthwiseWork own = work(image, from, to);
  for (uint32_t channel = from; channel < to; channel += own.to) {
    own.from = 0;
    own.to = std::min(together, to - channel);
    for (uint32_t i = 0; i < own.to; ++i) {
      call_.expansion->compute(image, channel + i, 0, pixels, planes + ptrdiff_t(i) * stride);
    }
    own.x = planes;
    own.channel_stride = stride;
    own.weights = call_.weights + size_t{channel} * own.taps;
    own.bias = call_.bias ? call_.bias + channel : nullptr;
    Target place = target(image, int64_t{channel} * geometry_.out_pixels());
    if (!by_tile()) {
      convolve_shifted(own, place);
      continue;
    }
    for (size_t tile = 0; tile < tiles_; ++tile) {
      place.count = tile_size(geometry_.out_pixels(), int64_t(tile));
      kernels_.depthwise_windows(
          own, geometry_.windows(scratch(), int64_t(tile), kernels_.width), place);
      place.y += kTile;
      if (place.residual) place.residual += kTile;
    }
  }
}

void DepthwiseTasks::convolve_shifted(DepthwiseWork own, const Target& place) const {
  const int last_count = tile_size(geometry_.out_pixels(), int64_t(tiles_) - 1);
  if (!geometry_.phased()) {
    kernels_.depthwise_shifted(own, shifts_.data(), tiles_, last_count, place);
    return;
  }
  float* phases = scratch().phases.array<float>(geometry_.phase_count() *
                                                size_t(geometry_.phase_size()));
  const float* x = own.x;
  const ptrdiff_t stride = own.channel_stride;
  const uint32_t from = own.from, to = own.to;
  own.x = phases;
  own.channel_stride = 0;
  for (uint32_t channel = from; channel < to; ++channel) {
    geometry_.split(kernels_, x + ptrdiff_t(channel) * stride, phases);
    own.from = channel;
    own.to = channel + 1;
    kernels_.depthwise_shifted(own, shifts_.data(), tiles_, last_count, place);
  }
}

void DepthwiseTasks::run_tile(int64_t image, int64_t tile, uint32_t from, uint32_t to) const {
  Target place = target(image, tile * kTile);
  place.count = tile_size(geometry_.out_pixels(), tile);
  kernels_.depthwise_windows(work(image, from, to),
                             geometry_.windows(scratch(), tile, kernels_.width), place);
}

}  // namespace onnxprune
