"""Fuzzes `targets`' "parquet": python tests/fuzz/fuzz_parquet.py -max_total_time=60."""

from harness import fuzz

if __name__ == "__main__":
    fuzz("parquet")
