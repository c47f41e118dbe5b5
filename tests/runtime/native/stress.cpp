// Random convolutions, depthwise convolutions (of what pointwise ones make, too) and products on several threads, and activations,
// against double precision. Buffers end where their data end, so that sanitizers and valgrind notice an
// access beyond. `make sanitize` and `make neon` build and run it. Argument: how many rounds.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "convolution.h"
#include "depthwise.h"
#include "product.h"

using namespace onnxprune;

namespace {

std::mt19937 generator(0);

int64_t below(int64_t limit) { return int64_t(generator() % uint64_t(limit)); }
float value() { return std::uniform_real_distribution<float>(-1, 1)(generator); }

// Exactly as many floats as asked for, on a cache line or just behind one.
struct Exact {
  explicit Exact(int64_t count) : size(size_t(count)), data(new float[size ? size : 1]) {
    for (size_t i = 0; i < size; ++i) data[i] = value();
  }
  size_t size;
  std::unique_ptr<float[]> data;
};

struct Weights {
  std::vector<float> dense, values;
  std::vector<uint16_t> columns;
  std::vector<int32_t> starts{0};
  SparseMatrix matrix{};

  Weights(size_t rows, size_t width, double density, int block) : dense(rows * width, 0.0f) {
    for (size_t row = 0; row < rows; ++row) {
      for (size_t column = 0; column < width; ++column) {
        const size_t leader = row / size_t(block) * size_t(block);
        const bool kept = row == leader
                              ? std::uniform_real_distribution<>()(generator) < density
                              : dense[leader * width + column] != 0;
        if (!kept) continue;
        const float weight = value() + 2.0f;
        dense[row * width + column] = weight;
        values.push_back(weight);
        columns.push_back(uint16_t(column));
      }
      starts.push_back(int32_t(values.size()));
    }
    matrix = {rows, width, values.data(), columns.data(), starts.data()};
  }
};

template <class Tasks>
void run(const Tasks& tasks, int threads) {
  const auto phase = [&](size_t count, auto body) {
    std::atomic<size_t> next{0};
    std::vector<std::thread> pool;
    for (int t = 0; t < threads; ++t) {
      pool.emplace_back([&] {
        for (size_t task; (task = next++) < count;) body(task);
      });
    }
    for (std::thread& thread : pool) thread.join();
  };
  phase(tasks.preparations(), [&](size_t task) { tasks.prepare(task); });
  phase(tasks.count(), [&](size_t task) { tasks.run(task); });
}

// Where pixel `pixel` of channel `channel` of an image lies.
int64_t place(int64_t pixels, int64_t channels, int64_t channel, int64_t pixel, bool tiled) {
  if (!tiled || pixels <= kMaxTile) return channel * pixels + pixel;
  const int64_t tiles = (pixels - (kMaxTile - kTile) + kTile - 1) / kTile;
  const int64_t tile = std::min(pixel / kTile, tiles - 1);
  const int64_t width = tile + 1 == tiles ? pixels - tile * kTile : kTile;
  return tile * kTile * channels + channel * width + pixel - tile * kTile;
}

WindowSpec window_of(int64_t height, int64_t width, int64_t most = 4) {
  WindowSpec window;
  for (int axis = 0; axis < 2; ++axis) {
    window.kernel[axis] = 1 + below(most);
    window.strides[axis] = 1 + below(3) / 2;
    window.dilations[axis] = 1 + below(4) / 3;
    window.pads[axis] = below(window.kernel[axis]);
    window.pads[axis + 2] = below(window.kernel[axis]);
  }
  if (below(2)) window = WindowSpec{};
  if (window.output_size(0, height) < 1 || window.output_size(1, width) < 1) window = WindowSpec{};
  return window;
}

bool close(double found, double wanted) {
  return std::abs(found - wanted) <= 1e-5 * std::max(1.0, std::abs(wanted));
}

[[noreturn]] void fail(const char* what, int round) {
  std::printf("%s differs in round %d\n", what, round);
  std::exit(1);
}

void convolution(int round, int threads) {
  const int64_t height = 1 + below(20), width = 1 + below(20), batch = 1 + below(2);
  ConvolutionSpec spec;
  spec.channels = 1 + below(40);
  spec.window = window_of(height, width);
  spec.x_tiled = below(2);
  spec.y_tiled = below(2);
  spec.activation = below(2) ? Activation::kRelu : Activation::kNone;
  const int block = below(3) ? 1 : 4;
  const int64_t rows = block * (1 + below(block == 4 ? 50 : 200));
  const auto taps = int64_t(spec.window.taps());
  const Weights weights(size_t(rows), size_t(spec.channels * taps), 0.15, block);
  const PackedWeights packed(weights.matrix, size_t(taps), spec.reads_in_place(), block, kernels());
  const int64_t out_height = spec.window.output_size(0, height);
  const int64_t out_width = spec.window.output_size(1, width);
  const int64_t pixels = height * width, out_pixels = out_height * out_width;
  const Exact x(batch * spec.channels * pixels), bias(rows), residual(batch * rows * out_pixels);
  Exact y(batch * rows * out_pixels);
  const ConvolutionCall call{x.data.get(), bias.data.get(), residual.data.get(), y.data.get(),
                             batch,        height,          width};
  run(ConvolutionTasks(spec, packed, kernels(), call), threads);
  for (int check = 0; check < 200; ++check) {
    const int64_t image = below(batch), row = below(rows), pixel = below(out_pixels);
    const int64_t at = image * rows * out_pixels + place(out_pixels, rows, row, pixel, spec.y_tiled);
    double sum = double(bias.data[size_t(row)]) + residual.data[size_t(at)];
    for (int64_t column = 0; column < spec.channels * taps; ++column) {
      const int64_t tap = column % taps, ky = tap / spec.window.kernel[1];
      const int64_t kx = tap % spec.window.kernel[1];
      const int64_t iy = pixel / out_width * spec.window.strides[0] +
                         ky * spec.window.dilations[0] - spec.window.pads[0];
      const int64_t ix = pixel % out_width * spec.window.strides[1] +
                         kx * spec.window.dilations[1] - spec.window.pads[1];
      if (iy < 0 || iy >= height || ix < 0 || ix >= width) continue;
      const int64_t from = image * spec.channels * pixels +
                           place(pixels, spec.channels, column / taps, iy * width + ix, spec.x_tiled);
      sum += double(weights.dense[size_t(row * spec.channels * taps + column)]) *
             x.data[size_t(from)];
    }
    if (spec.activation == Activation::kRelu) sum = std::max(sum, 0.0);
    if (!close(y.data[size_t(at)], sum)) fail("a convolution", round);
  }
}

double activated(Activation kind, double x, double alpha, double beta) {
  const auto sigmoid = [](double u) { return 1 / (1 + std::exp(-u)); };
  const auto cut = [](double u, double low, double high) { return std::min(high, std::max(low, u)); };
  switch (kind) {
    case Activation::kNone: return x;
    case Activation::kRelu: return std::max(x, 0.0);
    case Activation::kClip: return cut(x, alpha, beta);
    case Activation::kHardSwish: return x * cut(x / 6 + 0.5, 0, 1);
    case Activation::kSilu: return x * sigmoid(x);
    case Activation::kGelu: return x / 2 * (1 + std::erf(x / std::sqrt(2.0)));
    case Activation::kGeluTanh: return x * sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x));
    case Activation::kLeakyRelu: return x < 0 ? alpha * x : x;
    case Activation::kHardSigmoid: return cut(alpha * x + beta, 0, 1);
    case Activation::kSigmoid: return sigmoid(x);
  }
  return x;
}

void depthwise(int round, int threads) {
  const int64_t most = below(2) ? 24 : 50;
  const int64_t height = below(6) ? 1 + below(most) : 1, width = 1 + below(most * 50 / (height + 49));
  const int64_t batch = 1 + below(2);
  DepthwiseSpec spec;
  spec.channels = 1 + below(below(2) ? 150 : 10);
  spec.window = window_of(height, width, 8);
  constexpr Activation kKinds[]{Activation::kNone, Activation::kRelu, Activation::kHardSwish,
                                Activation::kSilu};
  spec.activation = kKinds[below(4)];
  const auto taps = int64_t(spec.window.taps());
  const int64_t out_height = spec.window.output_size(0, height);
  const int64_t out_width = spec.window.output_size(1, width);
  const int64_t out_pixels = out_height * out_width;
  const Exact x(batch * spec.channels * height * width), weights(spec.channels * taps);
  const Exact bias(spec.channels);
  // A residual may be what the output overwrites.
  Exact y(batch * spec.channels * out_pixels);
  const bool in_place = below(2);
  const std::vector<float> before(y.data.get(), y.data.get() + y.size);
  const DepthwiseCall call{
      x.data.get(), weights.data.get(), bias.data.get(), in_place ? y.data.get() : nullptr,
      y.data.get(), batch,              height,          width};
  run(DepthwiseTasks(spec, kernels(), call), threads);
  for (int check = 0; check < 200; ++check) {
    const int64_t plane = below(batch * spec.channels), pixel = below(out_pixels);
    const int64_t channel = plane % spec.channels;
    const auto at = size_t(plane * out_pixels + pixel);
    double sum = bias.data[size_t(channel)];
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t iy = pixel / out_width * spec.window.strides[0] +
                         tap / spec.window.kernel[1] * spec.window.dilations[0] - spec.window.pads[0];
      const int64_t ix = pixel % out_width * spec.window.strides[1] +
                         tap % spec.window.kernel[1] * spec.window.dilations[1] - spec.window.pads[1];
      if (iy < 0 || iy >= height || ix < 0 || ix >= width) continue;
      sum += double(weights.data[size_t(channel * taps + tap)]) *
             x.data[size_t(plane * height * width + iy * width + ix)];
    }
    if (in_place) sum += before[at];
    if (!close(y.data[at], activated(spec.activation, sum, 0, 0))) fail("a depthwise one", round);
  }
}

// A pointwise convolution and a depthwise one in one operator.
void expanded(int round, int threads) {
  const int64_t most = below(2) ? 24 : 50;
  const int64_t height = below(6) ? 1 + below(most) : 1, width = 1 + below(most * 50 / (height + 49));
  const int64_t batch = 1 + below(2), pixels = height * width;
  constexpr Activation kKinds[]{Activation::kNone, Activation::kRelu, Activation::kHardSwish,
                                Activation::kSilu};
  ExpansionSpec expansion_spec;
  expansion_spec.channels = 1 + below(30);
  expansion_spec.activation = kKinds[below(4)];
  DepthwiseSpec spec;
  spec.channels = 1 + below(below(2) ? 150 : 10);
  spec.window = window_of(height, width, 8);
  spec.activation = kKinds[below(4)];
  const auto taps = int64_t(spec.window.taps());
  const int64_t out_width = spec.window.output_size(1, width);
  const int64_t out_pixels = spec.window.output_size(0, height) * out_width;
  const Weights first(size_t(spec.channels), size_t(expansion_spec.channels), 0.15, 1);
  const Exact x(batch * expansion_spec.channels * pixels), weights(spec.channels * taps);
  const Exact first_bias(spec.channels), bias(spec.channels);
  Exact y(batch * spec.channels * out_pixels);
  const bool in_place = below(2);
  const std::vector<float> before(y.data.get(), y.data.get() + y.size);
  const Expansion expansion(expansion_spec, first.matrix, kernels(), x.data.get(),
                            first_bias.data.get(), pixels);
  const DepthwiseCall call{nullptr, weights.data.get(), bias.data.get(),
                           in_place ? y.data.get() : nullptr,
                           y.data.get(), batch, height, width, &expansion};
  run(DepthwiseTasks(spec, kernels(), call), threads);
  for (int check = 0; check < 200; ++check) {
    const int64_t image = below(batch), channel = below(spec.channels), pixel = below(out_pixels);
    const auto at = size_t((image * spec.channels + channel) * out_pixels + pixel);
    double sum = bias.data[size_t(channel)];
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t iy = pixel / out_width * spec.window.strides[0] +
                         tap / spec.window.kernel[1] * spec.window.dilations[0] - spec.window.pads[0];
      const int64_t ix = pixel % out_width * spec.window.strides[1] +
                         tap % spec.window.kernel[1] * spec.window.dilations[1] - spec.window.pads[1];
      if (iy < 0 || iy >= height || ix < 0 || ix >= width) continue;
      double inner = first_bias.data[size_t(channel)];
      for (int64_t k = 0; k < expansion_spec.channels; ++k) {
        inner += double(first.dense[size_t(channel * expansion_spec.channels + k)]) *
                 x.data[size_t((image * expansion_spec.channels + k) * pixels + iy * width + ix)];
      }
      sum += double(weights.data[size_t(channel * taps + tap)]) *
             activated(expansion_spec.activation, inner, 0, 0);
    }
    if (in_place) sum += before[at];
    if (!close(y.data[at], activated(spec.activation, sum, 0, 0))) fail("an expanded one", round);
  }
}

void product(int round, int threads) {
  ProductSpec spec;
  spec.features = 1 + below(300);
  const int64_t tokens = 1 + below(below(2) ? 200 : 8), rows = 4 * (1 + below(80));
  const int block = below(2) ? 1 : 4;
  const Weights weights(size_t(rows), size_t(spec.features), 0.15, block);
  const PackedWeights packed(weights.matrix, 1, true, block, kernels());
  const Exact x(tokens * spec.features), bias(rows), residual(tokens * rows);
  Exact y(tokens * rows);
  const ProductCall call{x.data.get(), bias.data.get(), residual.data.get(),
                         y.data.get(), tokens,          weights.matrix};
  run(ProductTasks(spec, packed, kernels(), call), threads);
  for (int check = 0; check < 200; ++check) {
    const int64_t token = below(tokens), row = below(rows);
    double sum = double(bias.data[size_t(row)]) + residual.data[size_t(token * rows + row)];
    for (int64_t k = 0; k < spec.features; ++k) {
      sum += double(weights.dense[size_t(row * spec.features + k)]) *
             x.data[size_t(token * spec.features + k)];
    }
    if (!close(y.data[size_t(token * rows + row)], sum)) fail("a product", round);
  }
}

void activations(int round) {
  const float alpha = -0.5f, beta = 0.75f;
  for (int kind = 0; kind <= int(Activation::kSigmoid); ++kind) {
    Exact x(1 + below(40));
    for (size_t i = 0; i < x.size; ++i) x.data[i] *= below(4) ? 4.0f : 200.0f;
    const std::vector<float> before(x.data.get(), x.data.get() + x.size);
    kernels().activate(Activation(kind), alpha, beta, x.data.get(), x.size);
    for (size_t i = 0; i < x.size; ++i) {
      if (!close(x.data[i], activated(Activation(kind), before[i], alpha, beta))) {
        fail("an activation", round);
      }
    }
    x.data[0] = NAN;
    kernels().activate(Activation(kind), alpha, beta, x.data.get(), x.size);
    if (!std::isnan(x.data[0])) fail("an activation of NaN", round);
  }
}

}  // namespace

int main(int count, char** arguments) {
  const int rounds = count > 1 ? std::atoi(arguments[1]) : 100;
  for (int round = 0; round < rounds; ++round) {
    const int threads = 1 + int(below(4));
    convolution(round, threads);
    depthwise(round, threads);
    expanded(round, threads);
    product(round, threads);
    activations(round);
  }
  std::printf("%s: %d rounds hold\n", kernels().name, rounds);
}
