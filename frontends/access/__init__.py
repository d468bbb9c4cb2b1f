"""Access control: API keys, tenants, and the addresses that a server may listen on."""
