"""``python -m vivit_bench``."""

from vivit_bench.cli import main

if __name__ == "__main__":
    main()
