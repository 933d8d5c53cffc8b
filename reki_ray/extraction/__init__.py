"""Room 3, extract: what is still to ask, engines, the ledger of answers, dead letters."""
