"""Engines, engine cores and admission policies that replace real ones."""
