"""Fuzzes `targets`' "records": python tests/fuzz/fuzz_records.py -max_total_time=60."""

from harness import fuzz

if __name__ == "__main__":
    fuzz("records")
