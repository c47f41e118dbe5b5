// How long a cache line takes from one processor to another and back, in nanoseconds: tens where the
// two share a cache, hundreds where they do not. Takes the numbers of the processors.
// Built by native.py.
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

namespace {

constexpr int kTrips = 200000;

alignas(128) std::atomic<int> turn{0};

void pin(int processor) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(processor, &set);
  if (pthread_setaffinity_np(pthread_self(), sizeof set, &set) != 0) std::exit(1);
}

// Waits for odd or even numbers, and answers each with the next.
void play(int processor, int first) {
  pin(processor);
  for (int i = first; i < 2 * kTrips; i += 2) {
    while (turn.load(std::memory_order_acquire) != i) {
    }
    turn.store(i + 1, std::memory_order_release);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 1;
  std::thread other(play, std::atoi(argv[2]), 1);
  const auto start = std::chrono::steady_clock::now();
  play(std::atoi(argv[1]), 0);
  other.join();
  const std::chrono::duration<double, std::nano> spent = std::chrono::steady_clock::now() - start;
  std::printf("%.0f\n", spent.count() / kTrips);
}
