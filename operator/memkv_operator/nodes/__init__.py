"""Talking to data-plane nodes: memkv.v1.NodeAdmin, behind an interface that tests can fake."""
