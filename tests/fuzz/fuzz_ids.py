"""Fuzzes `targets`' "ids": python tests/fuzz/fuzz_ids.py -max_total_time=60."""

from harness import fuzz

if __name__ == "__main__":
    fuzz("ids")
