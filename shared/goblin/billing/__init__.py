"""Budgets that cannot be overspent: accounts, the ledger's client, settlement against bills, cost reports."""
