"""What do data and runs look like to a person? Reports, text and HTML of what is trained on; without jax.

audit.py checks a whole dataset before any compute, and audit_text.py prints its report; token_view.py shows one tree
of tokens, its branches where branches.py puts them; viewed.py finds the dialogues that page.py shows, in a browser as
html_page.py draws them; live_curve.py draws a run in a notebook, and notebook_views.py shows objects there.
"""
