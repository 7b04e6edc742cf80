"""What is done: the domain of deleting finetunes, and the Celery tasks as thin shims over it."""
