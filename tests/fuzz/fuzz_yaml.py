"""Fuzzes `targets`' "yaml": python tests/fuzz/fuzz_yaml.py -max_total_time=60."""

from harness import fuzz

if __name__ == "__main__":
    fuzz("yaml")
