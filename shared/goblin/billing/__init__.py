"""Budgets that cannot be overspent: accounts, the budget client, settlement against bills, cost reports."""
