"""The platform's HTTP routers, and the functions behind them."""
