"""For `celery -A worker worker`, `celery -A worker beat` and every other standard Celery command."""

from worker.app import create_app
from worker.settings import load_settings

app = create_app(load_settings())
