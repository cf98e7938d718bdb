"""Fuzzes `targets`' "weights": python tests/fuzz/fuzz_weights.py -max_total_time=60."""

from harness import fuzz

if __name__ == "__main__":
    fuzz("weights")
