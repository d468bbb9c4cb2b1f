"""Who may call: API keys, tenants, and addresses that may be listened on."""
