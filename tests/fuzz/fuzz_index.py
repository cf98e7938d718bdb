"""Fuzzes `targets`' "index": python tests/fuzz/fuzz_index.py -max_total_time=60."""

from harness import fuzz

if __name__ == "__main__":
    fuzz("index")
