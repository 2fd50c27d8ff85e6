#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace dkn {

// Calls work(i) for every i in [0, count) on up to n_threads threads, the caller's included. After
// an exception no new items start; the first one is thrown here once all threads have ended.
template <typename Work>
void parallel_for(std::size_t count, std::size_t n_threads, Work work) {
    std::atomic<std::size_t> next{0};
    std::exception_ptr error;
    std::mutex error_mutex;
    const auto run = [&] {
        for (std::size_t i = next++; i < count; i = next++) {
            try {
                work(i);
            } catch (...) {
                const std::lock_guard<std::mutex> lock(error_mutex);
                if (!error) {
                    error = std::current_exception();
                }
                next = count;
            }
        }
    };
    std::vector<std::thread> threads;
    for (std::size_t t = 1; t < std::min(n_threads, count); ++t) {
        try {
            threads.emplace_back(run);
        } catch (const std::system_error&) {
            break;  // No more threads to be had; those there are will do the work.
        }
    }
    run();
    for (std::thread& thread : threads) {
        thread.join();
    }
    if (error) {
        std::rethrow_exception(error);
    }
}

}  // namespace dkn
