"""Cleaning up stale finetunes: policies, a survey of what is there, and plans of what to delete."""
