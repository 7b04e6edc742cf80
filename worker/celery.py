"""For `celery -A worker worker`, `celery -A worker beat` and every other standard Celery command."""

import sys

from tasks.errors import JanitorError
from worker.app import create_app
from worker.settings import load_settings

try:
    app = create_app(load_settings())
except JanitorError as error:
    print(f"Error: {error}", file=sys.stderr)
    # Celery would wrap anything else in a page of its own.
    raise SystemExit(2) from None
