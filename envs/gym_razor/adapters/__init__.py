"""Other environments behind the contract of this suite, and this suite behind other contracts."""
