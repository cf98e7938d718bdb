"""Fuzzes `targets`' "images": python tests/fuzz/fuzz_images.py -max_total_time=60."""

from harness import fuzz

if __name__ == "__main__":
    fuzz("images")
