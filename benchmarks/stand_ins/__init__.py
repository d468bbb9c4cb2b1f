"""Engines, engine cores and admission policies that stand in for real ones."""
