// What one core can do at most: multiply-adds from registers, multiply-adds that each load a vector
// (as every unstructured weight needs), and reading from and writing to each level of the memory.
// Prints JSON.
// Built by native.py with -O3 -march=native -ffast-math.
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kWidth), aligned(4), may_alias));

constexpr int kTile = 64;
constexpr int kVectors = kTile / kWidth;

double seconds() {
  using namespace std::chrono;
  return duration<double>(steady_clock::now().time_since_epoch()).count();
}

// Of many trials the fastest: a ceiling is what an undisturbed core reaches.
template <class Body>
double fastest(Body body) {
  double best = 1e9;
  const double end = seconds() + 1.5;
  for (int trial = 0; trial < 5 || seconds() < end; ++trial) {
    const double start = seconds();
    body();
    best = std::min(best, seconds() - start);
  }
  return best;
}

float sink;

inline void keep(Vec& x) {
#if defined(__x86_64__)
  __asm__ volatile("" : "+v"(x));
#else
  __asm__ volatile("" : "+w"(x));
#endif
}

// A function of its own with named sums: GCC keeps arrays and captured vectors in memory.
__attribute__((noinline)) float multiply_add(long rounds) {
  Vec x = Vec{} + 1.0f;
  const Vec y = Vec{} + 1e-9f;
  Vec t0{}, t1{}, t2{}, t3{}, t4{}, t5{}, t6{}, t7{}, t8{}, t9{};
  for (long round = 0; round < rounds; ++round) {
    keep(x);
    t0 += x * y, t1 += x * y, t2 += x * y, t3 += x * y, t4 += x * y;
    t5 += x * y, t6 += x * y, t7 += x * y, t8 += x * y, t9 += x * y;
    keep(t0), keep(t1), keep(t2), keep(t3), keep(t4);
    keep(t5), keep(t6), keep(t7), keep(t8), keep(t9);
  }
  return (t0 + t1 + t2 + t3 + t4 + t5 + t6 + t7 + t8 + t9)[0];
}

double registers_gflops() {
  constexpr long kRounds = 400000;
  const double time = fastest([] { sink += multiply_add(kRounds); });
  return 2.0 * kRounds * 10 * kWidth / time / 1e9;
}

// The inner loop of the sparse kernels: a weight and where its pixels lie, then the multiply-adds of
// one tile, in a slab of `rows` rows. Four rows of the output in turn hide the adders' latency.
double weights_gflops(size_t rows) {
  std::vector<float> storage(rows * kTile + 16);
  float* slab = storage.data();
  while (reinterpret_cast<size_t>(slab) % 64) ++slab;
  struct Entry {
    unsigned row[4];
    float value[4];
  };
  std::vector<Entry> entries(2048);
  for (Entry& entry : entries) {
    for (int r = 0; r < 4; ++r) {
      entry.row[r] = unsigned(size_t(std::rand()) % rows);
      entry.value[r] = 1e-9f;
    }
  }
  Vec sums[4][kVectors] = {};
  constexpr int kRepeats = 8;
  const double time = fastest([&] {
    for (int repeat = 0; repeat < kRepeats; ++repeat) {
      for (const Entry& entry : entries) {
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
          const float* pixels = slab + size_t(entry.row[r]) * kTile;
          const Vec weight = Vec{} + entry.value[r];
#pragma GCC unroll 16
          for (int i = 0; i < kVectors; ++i) {
            sums[r][i] += *reinterpret_cast<const Vec*>(pixels + i * kWidth) * weight;
          }
        }
      }
    }
  });
  for (auto& row : sums) sink += row[0][0];
  return 2.0 * kRepeats * double(entries.size()) * 4 * kTile / time / 1e9;
}

double read_gbs(size_t bytes) {
  const size_t floats = bytes / 4 / (8 * kWidth) * (8 * kWidth);
  std::vector<float> storage(floats + 16, 1.0f);
  float* data = storage.data();
  while (reinterpret_cast<size_t>(data) % 64) ++data;
  const long repeats = std::max<long>(1, long((size_t{16} << 20) / bytes));
  const double time = fastest([&] {
    for (long repeat = 0; repeat < repeats; ++repeat) {
      for (size_t i = 0; i + 8 * kWidth <= floats; i += 8 * kWidth) {
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) {
          Vec x = *reinterpret_cast<const Vec*>(data + i + size_t(j) * kWidth);
          keep(x);
        }
      }
    }
  });
  return double(repeats) * double(floats) * 4 / time / 1e9;
}

// Overwriting, which outside of the first level fetches a line before it is changed.
double write_gbs(size_t bytes) {
  const size_t floats = bytes / 4 / kWidth * kWidth;
  std::vector<float> storage(floats + 16, 1.0f);
  float* data = storage.data();
  while (reinterpret_cast<size_t>(data) % 64) ++data;
  const long repeats = std::max<long>(1, long((size_t{16} << 20) / bytes));
  Vec x = Vec{} + 2.0f;
  const double time = fastest([&] {
    for (long repeat = 0; repeat < repeats; ++repeat) {
      keep(x);
      for (size_t i = 0; i < floats; i += kWidth) *reinterpret_cast<Vec*>(data + i) = x;
    }
  });
  sink += data[floats / 2];
  return double(repeats) * double(floats) * 4 / time / 1e9;
}

}  // namespace

int main() {
  std::printf("{\"vector_floats\": %d, \"fma_registers_gflops\": %.1f", kWidth, registers_gflops());
  std::printf(", \"weights_l1_gflops\": %.1f", weights_gflops(96));
  std::printf(", \"weights_l2_gflops\": %.1f", weights_gflops(2048));
  const struct {
    const char* name;
    size_t bytes;
  } levels[] = {{"l1", size_t{24} << 10},
                {"l2", size_t{600} << 10},
                {"l3", size_t{8} << 20},
                {"memory", size_t{256} << 20}};
  for (const auto& level : levels) {
    std::printf(", \"read_%s_gbs\": %.1f", level.name, read_gbs(level.bytes));
    std::printf(", \"write_%s_gbs\": %.1f", level.name, write_gbs(level.bytes));
  }
  std::printf("}\n");
  return sink == 12345.0f;
}
