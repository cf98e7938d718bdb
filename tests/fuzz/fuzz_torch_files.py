"""Fuzzes `targets`' "torch_files": python tests/fuzz/fuzz_torch_files.py -max_total_time=60."""

from harness import fuzz

if __name__ == "__main__":
    fuzz("torch_files")
