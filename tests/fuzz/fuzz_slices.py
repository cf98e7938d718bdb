"""Fuzzes `targets`' "slices": python tests/fuzz/fuzz_slices.py -max_total_time=60."""

from harness import fuzz

if __name__ == "__main__":
    fuzz("slices")
