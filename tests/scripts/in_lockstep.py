"""Two processes that make steps and wait for each other, without anything that says so."""

import multiprocessing

import perftool


def work(barrier):
    for _ in range(10_000_000):
        barrier.wait()
        perftool.step()


if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    both = context.Barrier(2)
    others = [context.Process(target=work, args=(both,)) for _ in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join()
