"""The assessor: which level of the Execution Governance Maturity Model an installation has, measured by probing."""
