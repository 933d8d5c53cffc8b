"""Clients of large language models: chat completions, prices, budgets, retries."""
