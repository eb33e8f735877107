"""The paper exchange: a venue of our own, with every fence a real one may or may not have.

`engine.py` decides (pure), `record.py` remembers, `exchange.py` joins the two, `server.py` speaks gRPC,
`market.py` listens to the live feed. The adapter is `node/venues/paper.py`.
"""
