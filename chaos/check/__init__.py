"""The one checker: what a drill, a simulated life or a production record is judged by.

    Evidence -> History (read once) -> one function per invariant -> Verdict

`evidence.py` is what is judged, `files.py` keeps it on disk, `invariants.py` is the table S1 to S11, L1 to L3 and who
judges each, `verdict.py` what comes out. Everything but `files.py`, `journals.py` and `audit.py` is pure. The judge
reads the venue's record, the gate's, etcd's and the fault log; what a node says of itself explains, and never passes.
`mutate.py` forges histories, since a check that was never seen to fail proves nothing.
"""
