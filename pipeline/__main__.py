"""`python -m pipeline`."""

import sys

try:
    from pipeline.cli import main
except ModuleNotFoundError as error:  # of a package; `doctor` could not say it either
    sys.exit(f"error: {error} in {sys.executable}; mend: {sys.executable} -m pip install -r requirements.lock")

if __name__ == "__main__":
    main()
