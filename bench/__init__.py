"""The janitor beside other Python queues at the same job, on the same machine: `make bench`.

`api` is the API that all call, `calls` how they call it, `on_*` and `bare` the candidates; `lives` runs one of
them, `producing` and `ledger_costs` measure the way in and the ledger alone, `report` writes down what was found.
"""
